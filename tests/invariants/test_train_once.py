"""Invariant 9: an expert is trained once across slots, runs and renames; a change retrains exactly what depends on it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.counting import forward_passes
from tests.run.small import WORDS, recipe

import coterie


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def done(home: Path) -> Any:
    """One finished run that the tests below look at and change."""
    return coterie.run(recipe(home / "data"), store=home / "store", out=home / "out")


def again(home: Path, raw: dict, out: str = "again", **options: Any) -> dict[str, Any]:
    """Run in the same store; returns the summary."""
    return coterie.run(raw, store=home / "store", out=home / out, **options).summary


def test_a_second_run_makes_nothing_and_says_so(done: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.store import Store

    def never(*_: Any) -> None:
        raise AssertionError("something was made again")

    monkeypatch.setattr(Store, "_publish", never)
    summary = again(home, recipe(home / "data"))
    assert summary["reuse"] == {"requested": 3, "distinct": 2, "trained": 0, "reused": 2}
    assert summary["evaluation"] == done.summary["evaluation"]


def test_renaming_retrains_nothing(done: Any, home: Path) -> None:
    raw = recipe(home / "data", name="renamed")
    raw["corpora"] = {f"c-{k}": v for k, v in raw["corpora"].items()}
    raw["base"]["pretrain"]["corpora"] = [f"c-{k}" for k in WORDS]
    raw["experts"] = [{"name": f"x-{k}", "corpus": f"c-{k}"} for k in WORDS]
    raw["mixtures"] = [{"name": "m", "at": "outputs", "slots": ["x-*"], "router": "posterior"}]
    raw["evaluation"] = [{"name": "other", "corpora": [f"c-{k}" for k in WORDS], "bootstrap": 50}]
    summary = again(home, raw)
    assert summary["reuse"]["trained"] == 0
    assert set(summary["experts"]) == set(done.summary["experts"])
    assert summary["evaluation"]["other"]["m"]["all"] == done.summary["evaluation"]["losses"]["posterior"]["all"]


def test_moving_the_data_retrains_nothing(done: Any, home: Path) -> None:
    shutil.copytree(home / "data", home / "moved", dirs_exist_ok=True)
    raw = recipe(home / "data")
    for name in WORDS:
        raw["corpora"][name]["path"] = str(home / "moved" / f"{name}.jsonl")
    assert again(home, raw)["reuse"]["trained"] == 0


def test_one_changed_setting_retrains_exactly_what_depends_on_it(done: Any, home: Path) -> None:
    raw = recipe(home / "data")
    raw["experts"][1]["train"] = {"learning_rate": 0.02}
    summary = again(home, raw)
    assert [e["trained"] for e in summary["experts"].values()] == [False, True]
    assert summary["base"]["trained"] is False
    assert summary["single"]["trained"] is False


def test_saving_and_logging_retrain_nothing(done: Any, home: Path) -> None:
    raw = recipe(home / "data")
    raw["train"] |= {"save_every": 700, "log_every": 1, "threads": 1}
    assert again(home, raw)["reuse"]["trained"] == 0


def test_one_changed_training_byte_retrains_exactly_what_depends_on_it(done: Any, home: Path) -> None:
    raw = recipe(home / "data-changed")
    del raw["base"]["pretrain"], raw["single"]
    raw["base"]["tokenizer"]["corpora"] = ["fruit"]
    first = again(home, raw)
    rows = (home / "data-changed/tools.jsonl").read_text().splitlines()
    document = _a_training_row(home, raw, "tools", rows)
    rows[document] = rows[document].replace("hammer", "hummer").replace("steel", "stele").replace("nut", "nub")
    (home / "data-changed/tools.jsonl").write_text("\n".join(rows) + "\n")
    second = again(home, raw)
    names = {e["name"]: (h, e["trained"]) for h, e in second["experts"].items()}
    assert names["fruit"] == (next(h for h, e in first["experts"].items() if e["name"] == "fruit"), False)
    assert names["tools"][1] is True


def _a_training_row(home: Path, raw: dict, corpus: str, rows: list[str]) -> int:
    import polars as pl

    from coterie.recipe import read
    from coterie.run.parts import Parts
    from coterie.store import Store

    documents = Parts(read(raw), Store(home / "store")).documents(corpus)
    table = pl.read_parquet(documents.file("documents.parquet")).filter(pl.col("split") == "train")
    wanted = [r["id"] for r in table.iter_rows(named=True) if any(w in r["text"] for w in ("hammer", "steel", "nut"))]
    return next(i for i, line in enumerate(rows) if json.loads(line)["id"] == wanted[0])


def test_equal_experts_under_two_names_are_one(done: Any, home: Path) -> None:
    raw = recipe(home / "data")
    raw["experts"] = [*raw["experts"], {"name": "twin", "corpus": "tools"}]
    raw["mixtures"] = [{"name": "m", "at": "outputs", "slots": ["fruit", "tools", "twin"]}]
    summary = again(home, raw)
    assert summary["reuse"] == {"requested": 3, "distinct": 2, "trained": 0, "reused": 2}
    assert summary["evaluation"]["losses"]["m"] == done.summary["evaluation"]["losses"]["average"]


def test_another_router_runs_no_expert(done: Any, home: Path) -> None:
    raw = recipe(home / "data")
    raw["mixtures"][2]["router"] = {"kind": "mlp", "hidden": 4, "epochs": 1, "features": ["tokens", "posterior"]}
    with forward_passes() as passes:
        summary = again(home, raw)
    assert summary["mixtures"]["learned"] != done.summary["mixtures"]["learned"]
    assert not passes
