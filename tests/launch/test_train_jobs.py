"""Experts as jobs: the same bytes as without, only what is missing, each once whoever asks at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.run.small import recipe

import coterie
from coterie.launch.job_queue import Local
from coterie.recipe import read
from coterie.run import jobs as parallel
from coterie.run.parts import Parts
from coterie.store import Store


def asked(home: Path) -> dict[str, Any]:
    """A base, two experts on it, one that goes on from another, and one under two names."""
    raw = recipe(home / "data", mixtures=[{"name": "average", "at": "outputs", "slots": ["fruit", "after", "twin"]}])
    raw["experts"] += [{"name": "after", "corpus": "tools", "from": "fruit"}, {"name": "twin", "corpus": "tools"}]
    del raw["single"]
    return raw


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


@pytest.fixture(scope="module")
def alone(home: Path) -> Any:
    return coterie.run(asked(home), store=home / "alone", out=home / "out-alone")


@pytest.fixture(scope="module")
def apart(home: Path) -> Any:
    return coterie.run(asked(home), store=home / "apart", out=home / "out-apart", jobs=2)


def weights(store: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in store.glob("experts/*/model.safetensors")}


@pytest.mark.slow
def test_jobs_train_the_same_bytes(alone: Any, apart: Any, home: Path) -> None:
    assert weights(home / "apart") == weights(home / "alone")
    assert len(weights(home / "apart")) == 4, "base, fruit, tools, after; twin is tools"
    assert apart.summary["experts"].keys() == alone.summary["experts"].keys()
    assert apart.summary["evaluation"] == alone.summary["evaluation"]
    assert apart.summary["reuse"] == alone.summary["reuse"] == {"requested": 4, "distinct": 3, "trained": 3, "reused": 0}
    assert (home / "out-apart/metrics.jsonl").read_bytes() == (home / "out-alone/metrics.jsonl").read_bytes()
    assert not list((home / "apart/temp").iterdir()), "logs go when all went well"


@pytest.mark.slow
def test_a_second_run_starts_no_job(apart: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a job was started")

    monkeypatch.setattr(Local, "start", never)
    again = coterie.run(asked(home), store=home / "apart", out=home / "out-again", jobs=2)
    assert again.summary["reuse"]["trained"] == 0
    assert not again.summary["base"]["trained"]


def test_only_what_is_missing_is_a_job_and_ancestors_come_first(alone: Any, home: Path, tmp_path: Path) -> None:
    def missing(store: Path, *names: str, **changes: Any) -> dict[str, tuple[str, ...]]:
        c = Parts(read({**asked(home), **changes}), Store(store))
        for name in c.used_corpora:
            c.documents(name)
        found = parallel.missing_trainings(c, names or c.names)
        return {name: tuple(sorted(before)) for name, before in found.items()}

    everything = {"base": (), "fruit": ("base",), "tools": ("base",), "after": ("fruit",)}
    assert missing(tmp_path / "empty") == everything
    assert missing(tmp_path / "empty", "after") == {"base": (), "fruit": ("base",), "after": ("fruit",)}
    assert missing(home / "alone") == {}
    slower = asked(home)["experts"]
    slower[0]["train"] = {"learning_rate": 0.003}
    assert missing(home / "alone", experts=slower) == {"fruit": (), "after": ("fruit",)}
    fresh = [{**expert, "from": "fresh"} for expert in asked(home)["experts"][:2]]
    assert missing(tmp_path / "empty", experts=fresh, mixtures=[]) == {"base": (), "fruit": (), "tools": ()}
    assert missing(tmp_path / "empty", "fruit", experts=fresh, mixtures=[]) == {"fruit": ()}


def test_one_expert_by_name_trains_it_and_what_it_branches_from(alone: Any, home: Path, tmp_path: Path) -> None:
    made = coterie.run(asked(home), store=tmp_path / "store", out=tmp_path / "out", until="experts", only=["after"])
    assert {p.name for p in (tmp_path / "out/experts").iterdir()} == {"after"}
    assert set(made.experts) == {"after"}
    assert len(weights(tmp_path / "store")) == 3
    assert weights(tmp_path / "store").items() <= weights(home / "alone").items()
    assert not (tmp_path / "out/summary.json").exists()


@pytest.mark.slow
def test_what_some_jobs_failed_to_make_is_made_by_the_same_command(home: Path, tmp_path: Path) -> None:
    raw = asked(home)
    raw["experts"][0]["train"] = {"learning_rate": 1e30}
    with pytest.raises(coterie.errors.WorkError) as failed:
        coterie.run(raw, store=tmp_path / "store", out=tmp_path / "out", jobs=2)
    assert failed.value.what.endswith("not done: fruit, after")
    assert "after: not started: it needs fruit" in failed.value.found
    log = next((tmp_path / "store/temp").glob("jobs*/fruit.log"))
    assert str(log) in failed.value.found
    assert len(weights(tmp_path / "store")) == 2, "base and tools"
    done = coterie.run(asked(home), store=tmp_path / "store", out=tmp_path / "out", jobs=2)
    assert done.summary["reuse"] == {"requested": 4, "distinct": 3, "trained": 2, "reused": 1}


COUNTING = """
import os, sys
def hook(event, args):
    if event == "os.mkdir" and "/store/temp/" in str(args[0]):
        handle = os.open({log!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, os.path.basename(str(args[0])).encode() + b"\\n")
        os.close(handle)
sys.addaudithook(hook)
"""
"""Every process notes what it begins to make: the folder in which it will."""


@pytest.mark.slow
def test_two_commands_at_once_make_everything_once(home: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(asked(home)))
    (tmp_path / "sitecustomize.py").write_text(COUNTING.format(log=str(tmp_path / "begun")))
    code = "import sys; from coterie.cli import main; sys.argv[0] = 'coterie'; main()"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, "train", "r.yaml", "--store", "store", "--out", f"out{i}", "--jobs", "2"],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for it in both:
        _, said = it.communicate()
        assert it.returncode == 0, said
    begun = Counter(name.partition("~")[0] for name in set((tmp_path / "begun").read_text().splitlines()))
    assert begun.pop("jobs") == 2
    assert len(begun) >= 4
    assert set(begun.values()) == {1}
    assert len(weights(tmp_path / "store")) == 4
