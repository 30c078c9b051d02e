"""A recipe that selects and trains an expert on each group of topics, whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.run.small import BASE
from tests.select.texts import rows, write

import coterie
from coterie.corpora.blocks import Blocks


def test_experts_per_group_of_topics(tmp_path: Path) -> None:
    write(tmp_path / "c.jsonl", rows(260, 2))
    recipe = {
        "name": "topics",
        "sequence_length": 32,
        "base": BASE,
        "corpora": {
            "prose": {
                "path": str(tmp_path / "c.jsonl"),
                "id": "id",
                "columns": ["topic"],
                "split": {"valid": 0.15, "test": 0.15},
                "select": {
                    "budget": {"tokens": 6000},
                    "relax": True,
                    "axes": {"cluster": {"k": 4, "mix": 0.8, "groups": 2}},
                },
            }
        },
        "train": {"tokens": 1000, "learning_rate": 0.01, "precision": "fp32"},
        "experts": {"per": "cluster_group"},
        "mixtures": [{"name": "average", "at": "outputs", "slots": ["g*"], "router": "uniform"}],
        "evaluation": [{"name": "losses", "corpora": ["prose"], "by": "cluster_group", "bootstrap": 20}],
    }
    run = coterie.run(recipe, store=tmp_path / "store", out=tmp_path / "out")
    assert {e["name"] for e in run.summary["experts"].values()} == {"g0", "g1"}
    assert {"g0", "g1"} <= set(run.summary["evaluation"]["losses"]["average"])

    from coterie.recipe import read
    from coterie.run.parts import Parts
    from coterie.store import Store

    asked = read(recipe)
    c = Parts(asked, Store(tmp_path / "store"))
    whole = Blocks.open(c.blocks("prose", "train")).documents
    apart = [Blocks.open(c.blocks("prose", "train", where=e.where)).documents["id"].to_list() for e in asked.experts]
    assert sorted(apart[0] + apart[1]) == sorted(whole["id"].to_list())
    again = coterie.run(recipe, store=tmp_path / "store", out=tmp_path / "out", dry_run=True)
    assert not again.plan.missing


def test_an_empty_cluster_is_named(tmp_path: Path) -> None:
    """A cell without documents: an expert that would learn from nothing is refused before anything is trained."""
    made = [{**r, "kind": "a"} for r in rows(60, 2)]
    write(tmp_path / "c.jsonl", made)
    select = {"budget": {"docs": 20}, "axes": {"kind": {"target": {"a": 1.0, "b": 0.0}}}}
    recipe = {
        "name": "empty",
        "sequence_length": 32,
        "base": BASE,
        "experts": {"per": "kind"},
        "train": {"tokens": 500},
        "corpora": {"prose": {"path": str(tmp_path / "c.jsonl"), "id": "id", "select": select}},
    }
    with pytest.raises(coterie.errors.RequestError, match="no documents for kind in"):
        coterie.run(recipe, store=tmp_path / "store", out=tmp_path / "out")
