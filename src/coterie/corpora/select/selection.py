"""The verbs: a corpus with a selection becomes parts, profiles, topics, a pool, a selection, and documents to train on.

Each is an artifact, so another budget plans and picks anew without reading, and another file is profiled without the others.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coterie.corpora.plan import OWN
from coterie.corpora.reading import _count
from coterie.corpora.select.choose import Candidates, Chosen, refuse_unmet
from coterie.corpora.select.pool import CODE, REASONS, Pool, pool
from coterie.corpora.select.shards import profiled
from coterie.corpora.select.strategies import selected
from coterie.corpora.select.topics import Space, topics
from coterie.corpora.splits import SPLITS
from coterie.corpora.template import wanted
from coterie.errors import RequestError
from coterie.recipe import Corpus, Expert
from coterie.recipe.select import CLUSTER, GROUP, RESERVED, Select
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
        return Candidates.of(self.pool.table, self.select, tuple(self.labels))

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
        return selected(self.candidates, self.select, seed=self.seed, vectors=vectors, label=self.label)


def profile_corpus(store: Store, corpus: Corpus, *, label: str, workers: int = 1) -> Profiled:
    """Read and profile a corpus, fit or take its clusters, merge, filter.

    Raises:
        RequestError: what is wrong with the data or the request.
    """
    assert corpus.select is not None
    parts = profiled(store, corpus, label=label, workers=workers)
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
        refuse_unmet(chosen, it.label)
        chosen_table(it, chosen).write_parquet(folder / "selected.parquet", compression="zstd")
        (folder / "plan.json").write_text(json.dumps(plan_json(chosen), indent=1, sort_keys=True, ensure_ascii=False))
        facts = {"documents": len(chosen.at), "tokens": chosen.tokens, "put_back": chosen.put_back}
        facts["feasible"] = chosen.plan is None or chosen.plan.feasible
        (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True))

    action = Action("selections", spec, inputs, libraries=("scipy",))
    made = it.store.make(action, build, label=f"selection of {it.label}", tokens=it.select.budget.tokens)
    if not made.planned and not made.facts["feasible"]:  # it may have been made when the recipe relaxed it
        refuse_unmet(it.chosen, it.label)
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
        {"row": rows, "id": it.pool.ids(rows), "cell": names[cell], **labels, "tokens": chosen.pool.tokens_N[at],
         "quality": chosen.pool.quality_N[at], **parts, "score": score, "reason": reason}
    )  # fmt: skip


def _places_in_cell(cell: np.ndarray, score: np.ndarray) -> np.ndarray:
    order = np.lexsort((-score, cell))
    start = np.concatenate([[True], cell[order][1:] != cell[order][:-1]]) if len(cell) else np.zeros(0, bool)
    first = np.maximum.accumulate(np.where(start, np.arange(len(cell)), 0))
    place = np.empty(len(cell), dtype=np.int64)
    place[order] = np.arange(len(cell)) - first
    return place


def plan_json(chosen: Chosen) -> dict[str, Any]:
    """The plan as a file: axes, certificate, table."""
    made = chosen.plan
    unit = "tokens" if chosen.select.budget.tokens is not None else "documents"
    out: dict[str, Any] = {"unit": unit, "strategy": chosen.select.strategy}
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


def selected_documents(store: Store, corpus: Corpus, *, label: str) -> Artifact:
    """The corpus to train on: of the training split what was chosen, in the order in which it is given out; the valid and
    test splits whole. Every document has its cluster and its group of clusters, chosen or not.

    Returns:
        a ``corpora`` artifact like that of `documents`.
    """
    it = profile_corpus(store, corpus, label=label)
    made = selection(it)
    columns = [*it.corpus.columns, *([CLUSTER, GROUP] if it.topics is not None else [])]
    columns = list(dict.fromkeys(c for c in columns if c not in OWN))
    spec = {"selected": True, "columns": columns, "has_id": corpus.id is not None}
    inputs = {"selection": made.digest, "pool": it.artifact.digest}
    inputs |= {f"documents.{i}": d.digest for i, (d, _) in enumerate(it.parts)}

    def build(folder: Path) -> None:
        _write(folder, it, pl.read_parquet(made.file("selected.parquet")), columns, corpus.id is not None)

    return store.make(Action("corpora", spec, inputs), build, label=f"corpus {label} (selected)")


def _write(folder: Path, it: Profiled, chosen: pl.DataFrame, columns: list[str], has_id: bool) -> None:
    table = it.pool.table
    turn = np.full(len(table), -1, dtype=np.int64)
    turn[chosen["row"].to_numpy()] = np.arange(len(chosen))
    held = table["split"].to_numpy() != 0
    turn[held] = len(chosen) + np.arange(int(held.sum()))
    want = np.flatnonzero(turn >= 0)
    where = it.pool.places[want]
    added = [c for c in columns if c in (CLUSTER, GROUP)]
    found: list[pa.Table] = []
    for s, shard in enumerate(it.pool.shards):
        mine = want[where[:, 0] == s]
        at = it.pool.places[mine, 1]
        by_row = np.argsort(at, kind="stable")
        mine, at = mine[by_row], at[by_row]
        own = [*OWN, *(c for c in columns if c not in (CLUSTER, GROUP))]
        low = 0
        for batch in pq.ParquetFile(shard.documents.file("documents.parquet")).iter_batches(4096, columns=own):
            a, b = np.searchsorted(at, (low, low + len(batch)))
            part = pa.table(batch).take(pa.array(at[a:b] - low))
            rows = mine[a:b]
            for name in added:
                part = part.append_column(name, pa.array(table[name][rows].cast(pl.String).to_list(), pa.string()))
            if not has_id:
                ids = [c[:16] for c in part["content"].to_pylist()]
                part = part.set_column(part.schema.get_field_index("id"), "id", pa.array(ids, pa.string()))
            found.append(part.append_column("turn", pa.array(turn[rows])))
            low += len(batch)
    whole = pa.concat_tables(found).sort_by("turn").drop_columns("turn")
    pq.write_table(whole, folder / "documents.parquet", compression="zstd", row_group_size=8192)
    with (folder / "quarantine.jsonl").open("wb") as out:
        for shard in it.pool.shards:
            out.write(shard.documents.file("quarantine.jsonl").read_bytes())
    (folder / "facts.json").write_text(json.dumps(_facts(it, whole), indent=1, sort_keys=True))


def _facts(it: Profiled, whole: pa.Table) -> dict[str, Any]:
    funnel = it.artifact.facts["funnel"]
    reasons = dict(funnel["filtered_why"])
    for why, entry in funnel["dropped"].items():
        if why != REASONS[CODE["held out"]]:
            reasons[f"select: {why}"] = entry["documents"]
    splits: dict[str, dict[str, Any]] = {}
    for name in SPLITS:
        part = whole.filter(pc.equal(whole["split"], name))
        texts = zip(part["content"].to_pylist(), part["prompt"].to_pylist(), part["text"].to_pylist(), strict=True)
        content = sorted(bytes.fromhex(c) + hashlib.sha256(f"{p}\0{t}".encode()).digest() for c, p, t in texts)
        digest = hashlib.sha256(b"".join(content)).hexdigest()
        splits[name] = {"documents": len(part), "digest": digest, "characters": 0, "first": None, "last": None}
        if len(part):
            _count(splits[name], part)
    reasons["select: not chosen"] = funnel["kept"]["documents"] - splits["train"]["documents"]
    filtered = funnel["filtered"] + sum(n for why, n in reasons.items() if why.startswith("select: "))
    assert funnel["read"] == len(whole) + filtered + funnel["quarantined"]
    distinct = len(set(whole["content"].to_pylist()))
    return {
        "read": funnel["read"], "kept": len(whole), "filtered": filtered, "quarantined": funnel["quarantined"],
        "duplicates": len(whole) - distinct, "reasons": reasons, "splits": splits,
    }  # fmt: skip


def router_targets(experts: Sequence[Expert], corpus: str, documents: pl.DataFrame) -> list[str | None]:
    """The expert whose slice each document of a corpus belongs to: what a supervised gate is taught.

    Args:
        experts: of the recipe; the first whose `where` a document meets is its target.
        documents: with the columns that `where` asks for, such as `Blocks.documents`.
    """
    target: list[str | None] = [None] * len(documents)
    for expert in reversed([e for e in experts if e.corpus == corpus]):
        mine = np.ones(len(documents), dtype=bool)
        for column, values in wanted(expert.where).items():
            mine &= np.array([value in values for value in documents[column].to_list()], dtype=bool)
        for row in np.flatnonzero(mine):
            target[row] = expert.name
    return target


def why(it: Profiled, chosen: Chosen, name: str) -> list[str]:
    """What happened to one document, in sentences.

    Raises:
        RequestError: no document of this id was read.
    """
    ids = pl.read_parquet(it.artifact.file("ids.parquet"))["id"]
    hits = np.flatnonzero((ids == name).to_numpy())
    if not len(hits):
        near = difflib.get_close_matches(name, ids.head(50_000).to_list(), 1)
        raise RequestError(
            f"no document is called {name!r}",
            where="coterie select why",
            found=f"{len(ids):,} documents; quarantined and filtered rows are not among them",
            do=f"did you mean {near[0]!r}?" if near else "check the id",
        )
    lines: list[str] = []
    for row in hits.tolist():
        lines += [*([""] if lines else []), *_why(it, chosen, row, name)]
    return lines


def _why(it: Profiled, chosen: Chosen, row: int, name: str) -> list[str]:
    table = it.pool.table
    said = table.row(row, named=True)
    lines = [
        f"{name}: {said['tokens']:,} tokens, quality {said['quality']:.3f} (reading ease {said['flesch']:.0f}, richness "
        f"{said['richness']:.2f}, repetition {said['repetition']:.2f}, {'complete' if said['complete'] else 'incomplete'})"
    ]
    dropped = REASONS[said["dropped"]]
    if said["dropped"]:
        lines.append(f"dropped: {dropped}")
        pair = it.pool.pairs().filter((pl.col("row") == row) & pl.col("dropped"))
        if len(pair):
            like = it.pool.ids(pair["like"].to_numpy())[0]
            lines.append(f"like {like} (Jaccard {pair['jaccard'][0]:.3f}), which is better or held out")
        return lines
    at = int(np.searchsorted(it.candidates.row_N, row))
    cell = int(chosen.cell_N[at])
    words = " / ".join(chosen.cells[cell]) or "the pool"
    mine = np.flatnonzero(chosen.cell_N == cell)
    score = chosen.parts["score"]
    place = int((score[mine] > score[at]).sum()) + 1
    taken = int(chosen.chosen_N[mine].sum())
    figures = ", ".join(f"{k.replace('_', ' ')} {v[at]:.3f}" for k, v in chosen.parts.items())
    lines.append(f"cell {words}: place {place} of {len(mine)} by score; {taken} are taken ({figures})")
    if chosen.chosen_N[at]:
        lines.append(f"chosen, given out as number {int(np.flatnonzero(chosen.at == at)[0]) + 1} of {len(chosen.at)}")
    else:
        lines.append("not chosen: " + ("its cell gives nothing" if not taken else "others of its cell come first"))
    return lines
