"""From a pool and a request to a selection: plan, then pick.

`N` documents that the filters left, `C` cells, `n` chosen documents.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64, Int64, UInt64

from coterie.errors import RequestError
from coterie.select import pick
from coterie.select.quota_plan import Margin, Plan, plan, rounded
from coterie.select.select_settings import Axis, Rank, Select
from coterie.select.targets import Targets, targets

NONE = "(none)"
"""The value of a document whose column is null."""
_DENSE = 1 << 22
"""Combinations of values up to which cells are counted without sorting."""


@dataclass(frozen=True)
class Labels:
    """One property of all documents: its values, and the number of each document's."""

    values: list[str]
    code_N: Int64[np.ndarray, " N"]

    @classmethod
    def of(cls, column: pl.Series) -> Labels:
        """Values in alphabetical order, so that nothing depends on which came first."""
        text = column.cast(pl.String).fill_null(NONE) if column.dtype != pl.Categorical else column
        if text.dtype == pl.Categorical and text.null_count():
            text = text.cast(pl.String).fill_null(NONE)
        values = sorted(text.unique().cast(pl.String).to_list())
        return cls(values, text.cast(pl.Enum(values)).to_physical().to_numpy())

    def take(self, rows: np.ndarray) -> Labels:
        return Labels(self.values, self.code_N[rows])


@dataclass(frozen=True)
class Candidates:
    """What may be chosen: the documents that the filters left, as columns."""

    row_N: Int64[np.ndarray, " N"]
    """Row in the pool."""
    key_N: UInt64[np.ndarray, " N"]
    tokens_N: Int64[np.ndarray, " N"]
    quality_N: Float64[np.ndarray, " N"]
    labels: dict[str, Labels]
    """Of each axis, and of every other column with few values, by name."""

    def __len__(self) -> int:
        return len(self.row_N)

    @classmethod
    def of(cls, table: pl.DataFrame, select: Select, extra: tuple[str, ...] = ()) -> Candidates:
        """The rows of a pool that nothing dropped."""
        columns = {name: axis.column or name for name, axis in select.axes.items()} | {name: name for name in extra}
        kept = table.filter(pl.col("dropped") == 0) if (table["dropped"] != 0).any() else table
        rows = np.flatnonzero(table["dropped"].to_numpy() == 0)
        labels = {name: Labels.of(kept[column]) for name, column in columns.items()}
        return cls(rows, kept["key"].to_numpy(), kept["tokens"].to_numpy(), kept["quality"].to_numpy(), labels)

    def size_N(self, tokens: bool) -> np.ndarray:
        """What a document counts in the budget's unit."""
        return self.tokens_N if tokens else np.ones(len(self), dtype=np.int64)


@dataclass
class Chosen:
    """A selection."""

    pool: Candidates
    select: Select
    axes: dict[str, Targets]
    cells: list[tuple[str, ...]]
    """Values of the axes, of each cell."""
    cell_N: Int64[np.ndarray, " N"]
    capacity_C: Float64[np.ndarray, " C"]
    quota_C: Float64[np.ndarray, " C"]
    plan: Plan | None
    at: Int64[np.ndarray, " n"]
    """Places among the candidates, in the order in which they are given out."""
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    """Of each candidate: rank of quality, length score, merit, lot, score."""
    put_back: int = 0
    """Documents that came later because they were like an earlier one."""

    @property
    def tokens(self) -> int:
        return int(self.pool.tokens_N[self.at].sum())

    @cached_property
    def chosen_N(self) -> Bool[np.ndarray, " N"]:
        out = np.zeros(len(self.pool), dtype=bool)
        out[self.at] = True
        return out


def choose(pool: Candidates, select: Select, *, seed: int, vectors: pick.Vectors | None = None, label: str) -> Chosen:
    """Plan and pick.

    Args:
        vectors: unit vectors of some candidates, for redundancy control.
        label: the corpus's name, for messages.

    Returns:
        the selection; whether its plan could be met is for the caller to judge (``refuse_unmet``).

    Raises:
        RequestError: targets that no document answers to.
    """
    in_tokens = select.budget.tokens is not None
    budget = int(select.budget.tokens or select.budget.docs or 0)
    size_N = pool.size_N(in_tokens)
    labels = {name: pool.labels[name] for name in select.axes}
    if select.placebo:
        shuffled = np.argsort(pick.uniform(pool.key_N, seed, turn=7), kind="stable")
        labels = {name: it.take(shuffled) for name, it in labels.items()}
    cell_N, cells, codes_C = _cells(labels, len(pool))
    C = len(cells)
    capacity_C = np.bincount(cell_N, size_N, minlength=C)
    asked = {
        name: targets(
            name,
            axis,
            labels[name].values,
            np.bincount(codes_C[:, a], capacity_C, len(labels[name].values)),
            f"corpora.{label}.select.axes.{name}",
        )
        for a, (name, axis) in enumerate(select.axes.items())
    }
    margins = [
        Margin(t.name, t.groups, t.share_G * budget, t.group_V[codes_C[:, a]], t.weight)
        for a, t in enumerate(asked.values())
    ]
    made = plan(capacity_C, margins, budget)
    quota_C = made.table_C
    if not in_tokens:
        quota_C = rounded(quota_C, capacity_C, made.margins, made.attained, round(made.budget)).astype(float)
    parts = merits(pool, select.rank, labels)
    parts["score"] = pick.score(parts["merit"], pool.key_N, select.rank.temperature, seed)
    order, start_C1 = pick.ranked(parts["score"], cell_N, C)
    put_back = 0
    if select.redundancy is not None and vectors is not None:
        order, put_back = pick.without_likes(order, start_C1, quota_C, size_N, vectors, select.redundancy)
    if in_tokens:
        shares = [(m.group_C, attained) for m, attained in zip(made.margins, made.attained, strict=True)]
        at = pick.take_tokens(order, start_C1, size_N, quota_C, shares)
    else:
        at = pick.take_documents(order, start_C1, quota_C.astype(np.int64))
    lot = pick.uniform(pool.key_N[at], seed, turn=1)
    at = at[pick.interleaved(at, cell_N[at], pool.tokens_N[at], lot)]
    return Chosen(pool, select, asked, cells, cell_N, capacity_C, quota_C, made, at, parts, put_back)


def merits(pool: Candidates, rank: Rank, labels: dict[str, Labels]) -> dict[str, np.ndarray]:
    """The parts of each document's merit, each on one scale."""
    within = labels.get(rank.within or "")
    if within is None and rank.within is not None:
        within = pool.labels[rank.within]
    code = within.code_N if within is not None else np.zeros(len(pool), dtype=np.uint8)
    values = within.values if within is not None else [""]
    parts: dict[str, np.ndarray] = {}
    total = rank.quality + rank.length
    merit = np.zeros(len(pool))
    if rank.quality > 0:
        parts["quality_rank"] = pick.mid_rank(pool.quality_N, code, len(values))
        merit += rank.quality / total * parts["quality_rank"]
    if rank.length > 0:
        ranges = pick.length_ranges(pool.tokens_N, code, values, rank.ranges)
        parts["length_score"] = pick.length_score(pool.tokens_N, ranges[code, 0], ranges[code, 1])
        merit += rank.length / total * parts["length_score"]
    return parts | {"merit": merit}


def _cells(labels: dict[str, Labels], N: int) -> tuple[np.ndarray, list[tuple[str, ...]], np.ndarray]:
    """The cell of each document, numbered in the order of values; the values of each cell, as words and as numbers [C,
    A]."""
    if not labels:
        return np.zeros(N, dtype=np.uint8), [()], np.zeros((1, 0), dtype=np.int64)
    widths = [len(it.values) for it in labels.values()]
    whole = int(np.prod(widths))
    mixed_N = np.zeros(N, dtype=np.int32 if whole < 2**31 else np.int64)
    for it, width in zip(labels.values(), widths, strict=True):
        np.multiply(mixed_N, width, out=mixed_N)
        np.add(mixed_N, it.code_N, out=mixed_N, casting="unsafe")
    if whole <= _DENSE:
        there = np.flatnonzero(np.bincount(mixed_N, minlength=whole))
        number = np.zeros(whole, dtype=np.min_scalar_type(len(there)))
        number[there] = np.arange(len(there))
        cell_N = number[mixed_N]
    else:
        there, cell_N = np.unique(mixed_N, return_inverse=True)
    codes = np.stack(np.unravel_index(there, widths), 1)
    named = [tuple(it.values[c] for it, c in zip(labels.values(), row, strict=True)) for row in codes]
    return cell_N, named, codes


def met(chosen: Chosen, request: Select) -> bool:
    """Whether the request can be met: its targets, or for a strategy that sets its own, the budget."""
    made = chosen.plan
    if made is None:
        return bool(chosen.capacity_C.sum() >= (request.budget.tokens or request.budget.docs or 0))
    return made.feasible if request.strategy == "plan" else "budget" not in made.missing


def refuse_unmet(chosen: Chosen, request: Select, label: str) -> None:
    """Refuse what cannot be met, unless the recipe takes what comes nearest.

    Raises:
        RequestError: with the certificate and every value that is short.
    """
    if request.relax or met(chosen, request):
        return
    made = chosen.plan
    unit = "tokens" if request.budget.tokens is not None else "documents"
    asked = float(request.budget.tokens or request.budget.docs or 0)
    there = made.budget if made is not None else float(chosen.capacity_C.sum())
    missing, shorts = (made.missing, made.short) if made is not None else ({}, {})
    lines = []
    if request.strategy == "plan":
        lines.append(f"at least {missing['total']:,.0f} of {asked:,.0f} {unit} must miss their targets, in any selection")
    if there < asked:
        lines.append(f"budget: {asked - there:,.0f} {unit} more than the {there:,.0f} that are there")
    for axis, short in shorts.items():
        worst = sorted(short.items(), key=lambda kv: -kv[1])
        said = ", ".join(f"{value} {lack:,.0f}" for value, lack in worst[:12]) + (", ..." if len(worst) > 12 else "")
        if worst or missing.get(axis, 0) > 0:
            lines.append(f"{axis}: {missing.get(axis, 0):,.0f}" + (f"; there is too little of {said}" if worst else ""))
    raise RequestError(
        "the plan cannot be met",
        where=f"corpora.{label}.select",
        found="\n            ".join(lines),
        do="lower the budget, change the targets, or take what comes nearest: --relax (select.relax: true)",
    )


def without(axis: Axis, **changes: object) -> Axis:
    """An axis with another kind of target."""
    return axis.model_copy(update={"target": None, "mix": None, **changes})
