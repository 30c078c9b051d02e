"""Growth of a finished run: what is new gets an expert, what is known does not, and nobody else changes by a bit."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.mixtures.adapters.test_recipe import lora
from tests.run.small import WORDS, write_corpus

import coterie
from coterie.errors import RequestError
from coterie.run.grow import Grown

NEW = "river boat tide sail anchor wave harbour fish net salt shore storm".split()


def _run(root: Path, **router: Any) -> Path:
    asked = lora(root / "data")
    asked["mixtures"] = [
        {
            "name": "m",
            "at": "adapters",
            "slots": ["fruit", "tools"],
            "router": {"kind": "ridge", "scope": "model", "reads": "prefix"},
        }
    ]
    coterie.run(asked, store=root / "store", out=root / "out")
    return root / "out"


def _weights(out: Path) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in (out / "experts").glob("*/adapter_model.safetensors")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    _run(root)
    return root


@pytest.fixture(scope="module")
def grown(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that took in a new corpus, a repeat of a known one, and trained that one's expert on."""
    root = tmp_path_factory.mktemp("grow")
    shutil.copytree(finished, root, dirs_exist_ok=True)
    out = root / "out"
    found: dict[str, Any] = {
        "root": root,
        "out": out,
        "before": _weights(out),
        "first": json.loads((out / "summary.json").read_text()),
    }
    sea = write_corpus(root / "sea.jsonl", NEW, 200, 7)
    more = write_corpus(root / "more.jsonl", WORDS["tools"], 200, 8)
    text = ["corpora.{}.text=text", "corpora.{}.split={{valid: 0.15, test: 0.15}}"]
    grow = Grown(out, root / "store", settings=[t.format("sea") for t in text])
    found["run"] = grow.corpus("sea", sea)
    found["after"] = _weights(out)
    found["second"] = json.loads((out / "summary.json").read_text())
    again = Grown(out, root / "store", settings=[t.format("more") for t in text])
    found["repeat"] = again.corpus("more", more)
    found["unchanged"] = _weights(out)
    found["trained_on"] = Grown(out, root / "store", settings=[t.format("more") for t in text]).corpus(
        "more", more, train_on=True
    )
    found["stages"] = json.loads((out / "growth.json").read_text())
    return found


def test_a_new_corpus_gets_an_expert_while_the_others_stay_bit_by_bit(grown: dict[str, Any]) -> None:
    run = grown["run"]
    assert [s["name"] for s in run.summary["slots"]["m"]] == ["fruit", "tools", "sea"]
    assert run.summary["reuse"]["trained"] == 1
    assert grown["after"].keys() - grown["before"].keys() == {"sea"}
    assert all(grown["after"][name] == data for name, data in grown["before"].items())
    opened = coterie.load(grown["out"] / "mixtures" / "m")
    assert opened.experts[:3] is not None


def test_a_repeat_gets_none_and_is_said_to_whom_it_belongs(grown: dict[str, Any]) -> None:
    assert grown["repeat"] is None
    assert grown["unchanged"] == grown["after"]
    note = grown["stages"][2]
    assert note["change"] == "none"
    assert not note["decision"]["novel"]
    assert note["decision"]["expert"] == "tools"
    assert {"score", "cosine", "mahalanobis", "cosine_limit", "mahalanobis_limit"} <= note["decision"]["by_skill"][
        "tools"
    ].keys()


def test_when_asked_the_expert_it_belongs_to_is_trained_on(grown: dict[str, Any]) -> None:
    run = grown["trained_on"]
    assert [s["name"] for s in run.summary["slots"]["m"]] == ["fruit", "tools-more", "sea"]
    entry = next(e for e in run.summary["experts"].values() if e["name"] == "tools-more")
    assert entry["from"] == "tools"
    now = _weights(grown["out"])
    assert now["tools-more"] != now["tools"]
    assert all(now[name] == data for name, data in grown["after"].items())


def test_the_forgetting_table_shows_no_change_of_any_expert_alone(grown: dict[str, Any]) -> None:
    stages = [s["losses"] for s in grown["stages"]]
    assert [s["change"] for s in grown["stages"]] == ["start", "added", "none", "trained on"]
    for before, after in pairwise(stages):
        for expert in before.keys() & after.keys() - {"m"}:
            for corpus in before[expert]:
                assert after[expert][corpus] == before[expert][corpus], (expert, corpus)
    assert {"fruit", "tools", "sea"} <= stages[1]["m"].keys()


def test_the_library_lies_beside_the_run_and_reads(grown: dict[str, Any]) -> None:
    said = json.loads((grown["out"] / "library" / "library.json").read_text())
    assert said["version"] == 1
    assert [s["name"] for s in said["skills"]][:2] == ["fruit", "tools"]


def test_a_grown_recipe_runs_again_from_the_store(grown: dict[str, Any]) -> None:
    plan = coterie.run(grown["out"] / "recipe.json", store=grown["root"] / "store", out=grown["out"], dry_run=True).plan
    assert not plan.missing


@pytest.fixture
def small(finished: Path, tmp_path: Path) -> tuple[Path, Path]:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path / "out", tmp_path / "store"


def test_an_empty_corpus_is_an_error_and_nothing_is_lost(small: tuple[Path, Path], tmp_path: Path) -> None:
    out, store = small
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for name, text in (("empty", ""), ("blank", '{"id": 1, "text": ""}\n')):
        (tmp_path / f"{name}.jsonl").write_text(text)
        with pytest.raises(RequestError):
            Grown(out, store, settings=[f"corpora.{name}.text=text"]).corpus(name, tmp_path / f"{name}.jsonl")
    with pytest.raises(RequestError, match=r"no such|there is no"):
        Grown(out, store).corpus("absent", tmp_path / "absent.jsonl")
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_a_name_that_means_another_corpus_is_refused(small: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="called 'fruit' already"):
        Grown(*small).corpus("fruit", tmp_path / "else.jsonl")


def test_merging_makes_one_of_two_and_says_the_losses(small: tuple[Path, Path], capsys: Any) -> None:
    out, store = small
    assert Grown(out, store).merge(above=0.999) is None
    run = Grown(out, store).merge(above=-1.0)
    assert run is not None
    assert [s["name"] for s in run.summary["slots"]["m"]] == ["fruit-tools"]
    said = capsys.readouterr().out
    assert "the most alike" in said
    assert "before" in said
    assert "change" in said
    stage = json.loads((out / "growth.json").read_text())[-1]
    assert stage["change"] == "merged"
    assert 0 <= stage["lost"] <= 1


def test_pruning_takes_out_who_is_hardly_used(small: tuple[Path, Path], capsys: Any) -> None:
    out, store = small
    grow = Grown(out, store)
    assert grow.prune(below=0.0) is None
    grow.summary["routing"]["m"]["utilization"] = [0.98, 0.02]
    raw = grow.spec(grow.raw)
    raw["router"] = {"kind": "arrow", "top_k": 2}
    run = grow.prune()
    assert run is not None
    assert [s["name"] for s in run.summary["slots"]["m"]] == ["fruit"]
    assert "tools" not in {e["name"] for e in run.summary["experts"].values()}
    assert "before" in capsys.readouterr().out
    with pytest.raises(RequestError, match="no expert would be left"):
        Grown(out, store).prune(below=1.1)


def test_what_is_no_finished_run_cannot_grow(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no finished run is here"):
        Grown(tmp_path)
