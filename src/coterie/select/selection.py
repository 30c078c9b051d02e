"""The selection: which documents, in which order, and why; and what happened to any one of them."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

import numpy as np
import polars as pl

from coterie.corpora.row_plan import apart
from coterie.errors import RequestError
from coterie.select.choose import Chosen, met, refuse_unmet
from coterie.select.filters import REASONS
from coterie.select.profile import prompts_and_texts
from coterie.select.profiled_corpus import Profiled
from coterie.spec.json_types import Figures
from coterie.store import Action, Artifact

_OWN = frozenset("row id prompt text cell tokens quality quality_rank length_score merit score scores reason".split())
"""What is told of a chosen document; a column or an axis of such a name is told as ``column NAME``."""


def selection(data: Profiled) -> Artifact:
    """Plan and pick.

    Returns:
        a ``selections`` artifact: ``selected.parquet`` (in the order in which documents are given out: row of the pool, id,
        cell, scores) and ``plan.json``.

    Raises:
        RequestError: the plan cannot be met and the recipe does not relax it.
    """
    spec = data.select.model_dump(mode="json", exclude={"batch_bytes", "keep", "tokens", "relax"}) | {"seed": data.seed}
    for axis in spec["axes"].values():
        axis.pop("model"), axis.pop("embed")
    inputs = {"pool": data.artifact.content("pool.parquet", "ids.parquet")}
    if data.select.redundancy is not None and data.topics is not None:
        inputs["topics"] = data.topics.digest

    def build(folder: Path) -> None:
        chosen = data.chosen
        refuse_unmet(chosen, data.select, data.label)
        chosen_table(data, chosen).write_parquet(folder / "selected.parquet", compression="zstd")
        (folder / "plan.json").write_text(json.dumps(plan_json(chosen), indent=1, sort_keys=True, ensure_ascii=False))
        facts = {"documents": len(chosen.at), "tokens": chosen.tokens, "put_back": chosen.put_back}
        facts["feasible"] = met(chosen, data.select)
        (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True))

    action = Action("selections", spec, inputs, libraries=("scipy",))
    made = data.store.make(action, build, label=f"selection of {data.label}", tokens=data.select.budget.tokens)
    if not made.planned and not made.facts["feasible"]:  # it may have been made when the recipe relaxed it
        refuse_unmet(data.chosen, data.select, data.label)
    return made


def chosen_table(data: Profiled, chosen: Chosen) -> pl.DataFrame:
    """A row for each chosen document, in order: id, cell, scores, and why it is there."""
    at = chosen.at
    rows, cell, score = data.candidates.row_N[at], chosen.cell_N[at], chosen.parts["score"][at]
    names = np.array([" / ".join(c) for c in chosen.cells] or [""])
    taken_C, there_C = (np.bincount(cells, minlength=len(chosen.cells)) for cells in (cell, chosen.cell_N))
    reason = [
        f"{p + 1} of {taken_C[c]} taken from the {there_C[c]} documents of {names[c] or 'the pool'}"
        for p, c in zip(_places_in_cell(cell, score), cell, strict=True)
    ]
    axes = {name: labels.take(at) for name, labels in chosen.pool.labels.items() if name in chosen.axes}
    return pl.DataFrame(
        {
            "row": rows,
            "id": data.pool.ids(rows),
            "cell": names[cell],
            **{apart(name, _OWN): pl.Series(np.array(labels.values)[labels.code_N]) for name, labels in axes.items()},
            "tokens": chosen.pool.tokens_N[at],
            "quality": chosen.pool.quality_N[at],
            **{name: values[at] for name, values in chosen.parts.items() if name != "score"},
            "score": score,
            "reason": reason,
        }
    )


def _places_in_cell(cell: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Rank of each document among the chosen ones of its cell, by score."""
    order = np.lexsort((-score, cell))
    cells, first = np.unique(cell[order], return_index=True)
    place = np.empty(len(cell), dtype=np.int64)
    place[order] = np.arange(len(cell)) - first[np.searchsorted(cells, cell[order])]
    return place


def plan_json(chosen: Chosen) -> Figures:
    """The plan as a file: axes, certificate, table."""
    made = chosen.plan
    out: Figures = {"unit": chosen.budget.unit, "strategy": chosen.strategy}
    if made is None:
        return out
    out |= {
        "asked": made.requested,
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


def write_selected(path: Path, data: Profiled, chosen: Chosen) -> None:
    """The chosen documents as JSONL, in the order in which they are given out; only these are read."""
    table = chosen_table(data, chosen)
    rows = table["row"].to_numpy()
    texts = prompts_and_texts(data.pool.shards, data.pool.places[rows])
    columns = {apart(name, _OWN): column for name, column in data.columns.items()}
    kept = {c: data.pool.table[at][rows].cast(pl.String).to_list() for c, at in columns.items() if c not in table.columns}
    with path.open("w", encoding="utf-8") as file:
        for i, row in enumerate(table.drop("row").iter_rows(named=True)):
            prompt, text = texts[i]
            out = {"id": row.pop("id"), **({} if prompt is None else {"prompt": prompt}), "text": text}
            out |= {column: values[i] for column, values in kept.items()}
            scores = {name: round(row.pop(name), 6) for name in ("quality", *chosen.parts)}
            file.write(json.dumps({**out, **row, "scores": scores}, ensure_ascii=False) + "\n")


# one document -----------------------------------------------------------------------------------------------------------


def why(data: Profiled, chosen: Chosen, name: str) -> list[str]:
    """What happened to one document, in sentences.

    Raises:
        RequestError: no document of this id was read.
    """
    ids = data.pool.all_ids
    rows = np.flatnonzero((ids == name).to_numpy()).tolist()
    if not rows:
        similar = difflib.get_close_matches(name, ids.head(50_000).to_list(), 1)
        raise RequestError(
            f"no document is called {name!r}",
            where="coterie select why",
            found=f"{len(ids):,} documents; quarantined and filtered rows are not among them",
            do=f"did you mean {similar[0]!r}?" if similar else "check the id",
        )
    lines: list[str] = []
    for row in rows:
        measured = data.pool.table.row(row, named=True)
        if lines:
            lines.append("")
        lines.append(
            f"{name}: {measured['tokens']:,} tokens, quality {measured['quality']:.3f} (reading ease "
            f"{measured['flesch']:.0f}, richness {measured['richness']:.2f}, repetition {measured['repetition']:.2f}, "
            f"{'complete' if measured['complete'] else 'incomplete'})"
        )
        lines += _dropped(data, row, measured["dropped"]) if measured["dropped"] else _placed(data, chosen, row)
    return lines


def _dropped(data: Profiled, row: int, reason: int) -> list[str]:
    lines = [f"dropped: {REASONS[reason]}"]
    pair = data.pool.pairs.filter((pl.col("row") == row) & pl.col("dropped"))
    if len(pair):
        like = data.pool.ids(pair["like"].to_numpy())[0]
        lines.append(f"like {like} (Jaccard {pair['jaccard'][0]:.3f}), which is better or held out")
    return lines


def _placed(data: Profiled, chosen: Chosen, row: int) -> list[str]:
    at = int(np.searchsorted(data.candidates.row_N, row))
    cell = int(chosen.cell_N[at])
    mine, score = np.flatnonzero(chosen.cell_N == cell), chosen.parts["score"]
    place = int((score[mine] > score[at]).sum()) + 1
    taken = int(chosen.chosen_N[mine].sum())
    figures = ", ".join(f"{name.replace('_', ' ')} {values[at]:.3f}" for name, values in chosen.parts.items())
    named = " / ".join(chosen.cells[cell]) or "the pool"
    if chosen.chosen_N[at]:
        outcome = f"chosen, given out as number {int(np.flatnonzero(chosen.at == at)[0]) + 1} of {len(chosen.at)}"
    else:
        outcome = "not chosen: " + ("others of its cell come first" if taken else "its cell gives nothing")
    return [f"cell {named}: place {place} of {len(mine)} by score; {taken} are taken ({figures})", outcome]
