"""A plan is data that a run follows: its steps are counted off by it, and it says afterwards what everything came from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.run.small import recipe

import coterie
from coterie import progress


def test_a_run_follows_its_plan_and_leaves_it_with_every_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "QUIET", False)
    raw, store, out = recipe(tmp_path / "data", single=None), tmp_path / "store", tmp_path / "out"
    raw["mixtures"] = raw["mixtures"][:2]
    before = coterie.run(raw, store=store, out=out, dry_run=True).plan
    capsys.readouterr()
    done = coterie.run(raw, store=store, out=out)
    announced = re.findall(r"\[(\d+) of (\d+)\] (.*)", capsys.readouterr().err)
    assert [label for *_, label in announced] == [step.label for step in done.plan.missing]
    assert [int(at) for at, *_ in announced] == list(range(1, len(done.plan.missing) + 1))
    assert [(goal.kind, goal.name) for goal in before.goals] == [
        *(("base", "base"), ("expert", "fruit"), ("expert", "tools")),
        *(("mixture", "average"), ("mixture", "posterior"), ("evaluation", "losses")),
    ]

    steps = json.loads((out / "plan.json").read_text())["steps"]
    assert sorted(s["label"] for s in steps) == sorted(step.label for step in before)
    keys = {s["key"] for s in steps}
    for s in steps:
        record = json.loads((store / "actions" / s["kind"] / f"{s['key']}.json").read_text())
        assert s["digest"] in json.dumps(record)
        assert (store / s["kind"] / s["digest"] / "manifest.json").is_file()
        assert set(s["needs"]) <= keys - {s["key"]}
    assert [s["label"] for s in steps if not s["cached"]] == [step.label for step in done.plan.missing]
    page = (out / "report.html").read_text()
    assert all(s["digest"] in page for s in steps)
    by_key = {s["key"]: s for s in steps}
    fruit = next(s for s in steps if s["label"] == "expert fruit")
    assert {by_key[key]["label"] for key in fruit["needs"]} == {"base", "blocks train tokens of fruit"}

    again = coterie.run(raw, store=store, out=out)
    assert again.plan.missing == []
    assert "of" not in re.findall(r"\[\d+ (of)", capsys.readouterr().err)
    assert all(s["cached"] for s in json.loads((out / "plan.json").read_text())["steps"])
