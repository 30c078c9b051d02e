"""The verbs: a corpus with a selection becomes parts, profiles, topics, a pool and a selection.

Each is an artifact, so another budget plans and picks anew without reading, and another file is profiled without the others.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from coterie.select.candidates import Candidates
from coterie.select.choose import Chosen, choose
from coterie.select.corpus import Corpus
from coterie.select.plan_settings import CLUSTER, GROUP
from coterie.select.pool import Pool, pool
from coterie.select.profile_shards import profiled
from coterie.select.select_settings import RESERVED, Select
from coterie.select.shortfall import met, refuse_unmet
from coterie.select.topics import Space, topics
from coterie.spec.json_types import Figures
from coterie.store import Action, Artifact, Store

_MANY = 200
"""Values above which a column is no label."""


@dataclass
class Profiled:
    """Everything that is known of a corpus before a plan is made."""

    corpus: Corpus
    label: str
    store: Store
    parts: list[tuple[Artifact, Artifact]]
    topics: Artifact | None
    artifact: Artifact

    @property
    def select(self) -> Select:
        assert self.corpus.select is not None
        return self.corpus.select

    @property
    def seed(self) -> int:
        return self.select.seed or 0

    @cached_property
    def pool(self) -> Pool:
        return Pool(self.artifact, self.parts)

    @cached_property
    def candidates(self) -> Candidates:
        """What may be chosen, with every column that can serve as a label."""
        columns = {name: axis.column or name for name, axis in self.select.axes.items()}
        return Candidates.of(self.pool.table, columns | {name: name for name in self.labels})

    @property
    def columns(self) -> list[str]:
        """The corpus's own columns in the pool."""
        named = dict.fromkeys([*self.corpus.columns, *self.select.columns])
        return [c for c in named if c in self.pool.table.columns and c not in RESERVED and c not in (CLUSTER, GROUP)]

    @cached_property
    def labels(self) -> list[str]:
        """Columns that no axis uses and that have few values: what balance is judged by."""
        used = self.select.columns
        return [c for c in self.columns if c not in used and 1 < self.pool.table[c].n_unique() <= _MANY]

    def vectors(self, at: np.ndarray) -> np.ndarray:
        """Topic vectors of some candidates."""
        assert self.topics is not None
        space = Space.open(self.topics, self.select.axes[CLUSTER])
        rows = self.candidates.row_N[at]
        where = self.pool.places[rows]
        out: np.ndarray | None = None
        for s, shard in enumerate(self.pool.shards):
            mine = np.flatnonzero(where[:, 0] == s)
            if len(mine):
                got = space.vectors(shard, where[mine, 1].astype(np.int64))
                out = np.zeros((len(rows), got.shape[1]), np.float32) if out is None else out
                out[mine] = got
        assert out is not None
        return out

    @cached_property
    def chosen(self) -> Chosen:
        """The selection that the recipe asks for, met or not."""
        vectors = self.vectors if self.topics is not None else None
        return choose(self.candidates, self.select, seed=self.seed, vectors=vectors, label=self.label)


def profile_corpus(store: Store, corpus: Corpus, *, label: str) -> Profiled:
    """Read and profile a corpus, fit or take its clusters, merge, filter.

    Raises:
        RequestError: what is wrong with the data or the request.
    """
    assert corpus.select is not None
    parts = profiled(store, corpus, label=label)
    axis = corpus.select.axes.get(CLUSTER)
    fitted = None
    if axis is not None and axis.column is None:
        fitted = topics(store, parts, axis, label=label)
    return Profiled(corpus, label, store, parts, fitted, pool(store, parts, fitted, corpus.select, label=label))


def selection(it: Profiled) -> Artifact:
    """Plan and pick.

    Returns:
        a ``selections`` artifact: ``selected.parquet`` (in the order in which documents are given out: row of the pool, id,
        cell, scores) and ``plan.json``.

    Raises:
        RequestError: the plan cannot be met and the recipe does not relax it.
    """
    spec = it.select.model_dump(mode="json", exclude={"batch_bytes", "keep", "tokens", "relax"}) | {"seed": it.seed}
    for axis in spec["axes"].values():
        axis.pop("model"), axis.pop("embed")
    inputs = {"pool": it.artifact.content("pool.parquet", "ids.parquet")}
    if it.select.redundancy is not None and it.topics is not None:
        inputs["topics"] = it.topics.digest

    def build(folder: Path) -> None:
        chosen = it.chosen
        refuse_unmet(chosen, it.select, it.label)
        chosen_table(it, chosen).write_parquet(folder / "selected.parquet", compression="zstd")
        (folder / "plan.json").write_text(json.dumps(plan_json(chosen), indent=1, sort_keys=True, ensure_ascii=False))
        facts = {"documents": len(chosen.at), "tokens": chosen.tokens, "put_back": chosen.put_back}
        facts["feasible"] = met(chosen, it.select)
        (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True))

    action = Action("selections", spec, inputs, libraries=("scipy",))
    made = it.store.make(action, build, label=f"selection of {it.label}", tokens=it.select.budget.tokens)
    if not made.planned and not made.facts["feasible"]:  # it may have been made when the recipe relaxed it
        refuse_unmet(it.chosen, it.select, it.label)
    return made


def chosen_table(it: Profiled, chosen: Chosen) -> pl.DataFrame:
    """A row for each chosen document, in order: id, cell, scores, and why it is there."""
    at = chosen.at
    rows = it.candidates.row_N[at]
    cell = chosen.cell_N[at]
    names = np.array([" / ".join(c) for c in chosen.cells] or [""])
    score = chosen.parts["score"][at]
    place = _places_in_cell(cell, score)
    taken = np.bincount(cell, minlength=len(chosen.cells))
    held = np.bincount(chosen.cell_N, minlength=len(chosen.cells))
    reason = [
        f"{p + 1} of {taken[c]} taken from the {held[c]} documents of {names[c] or 'the pool'}"
        for p, c in zip(place, cell, strict=True)
    ]
    parts = {name: values[at] for name, values in chosen.parts.items() if name != "score"}
    labels = {
        name: pl.Series(np.array(it_.values)[it_.code_N[at]])
        for name, it_ in chosen.pool.labels.items()
        if name in chosen.axes
    }
    return pl.DataFrame(
        {
            "row": rows,
            "id": it.pool.ids(rows),
            "cell": names[cell],
            **labels,
            "tokens": chosen.pool.tokens_N[at],
            "quality": chosen.pool.quality_N[at],
            **parts,
            "score": score,
            "reason": reason,
        }
    )


def _places_in_cell(cell: np.ndarray, score: np.ndarray) -> np.ndarray:
    order = np.lexsort((-score, cell))
    start = np.concatenate([[True], cell[order][1:] != cell[order][:-1]]) if len(cell) else np.zeros(0, bool)
    first = np.maximum.accumulate(np.where(start, np.arange(len(cell)), 0))
    place = np.empty(len(cell), dtype=np.int64)
    place[order] = np.arange(len(cell)) - first
    return place


def plan_json(chosen: Chosen) -> Figures:
    """The plan as a file: axes, certificate, table."""
    made = chosen.plan
    out: Figures = {"unit": chosen.budget.unit, "strategy": chosen.strategy}
    if made is None:
        return out
    out |= {
        "asked": made.asked,
        "budget": made.budget,
        "feasible": made.feasible,
        "certificate": made.missing,
        "short": made.short,
        "iterations": made.iterations,
        "axes": {
            m.name: [
                {"value": g, "target": float(t), "capacity": float(c), "planned": float(p)}
                for g, t, c, p in zip(m.groups, m.target_G, m.of(chosen.capacity_C), m.of(chosen.quota_C), strict=True)
            ]
            for m in made.margins
        },
        "cells": [
            {"cell": list(c), "capacity": float(k), "planned": float(q)}
            for c, k, q in zip(chosen.cells, chosen.capacity_C, chosen.quota_C, strict=True)
        ],
    }
    return out
