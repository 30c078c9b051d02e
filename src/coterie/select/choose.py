"""From candidates and a request to a selection: plan, then pick.

`N` candidates, `C` cells, `A` axes, `n` chosen documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float64, Int64

from coterie.errors import RequestError
from coterie.select import pick
from coterie.select.candidates import Candidates, Labels
from coterie.select.plan_settings import Axis, Budget, Rank
from coterie.select.quota_plan import Margin, Plan, plan, rounded, targets
from coterie.select.select_settings import Select
from coterie.select.strategies import PLAN, STRATEGIES

_DENSE = 1 << 22
"""Combinations of values up to which cells are counted without sorting."""


@dataclass(frozen=True)
class Cells:
    """The combinations of the axes' values that there are, numbered in the order of values."""

    names: list[tuple[str, ...]]
    """A value of each axis."""
    code_CA: Int64[np.ndarray, "C A"]
    """Numbers of these values."""
    cell_N: Int64[np.ndarray, " N"]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def of(cls, labels: Mapping[str, Labels], N: int) -> Cells:
        if not labels:
            return cls([()], np.zeros((1, 0), dtype=np.int64), np.zeros(N, dtype=np.uint8))
        axes = list(labels.values())
        widths = [len(axis.values) for axis in axes]
        combinations = int(np.prod(widths))
        mixed_N = np.zeros(N, dtype=np.int32 if combinations < 2**31 else np.int64)
        for axis, width in zip(axes, widths, strict=True):
            np.multiply(mixed_N, width, out=mixed_N)
            np.add(mixed_N, axis.code_N, out=mixed_N, casting="unsafe")
        if combinations <= _DENSE:
            there = np.flatnonzero(np.bincount(mixed_N, minlength=combinations))
            number = np.zeros(combinations, dtype=np.min_scalar_type(len(there)))
            number[there] = np.arange(len(there))
            cell_N = number[mixed_N]
        else:
            there, cell_N = np.unique(mixed_N, return_inverse=True)
        code_CA = np.stack(np.unravel_index(there, widths), 1)
        names = [tuple(axis.values[c] for axis, c in zip(axes, codes, strict=True)) for codes in code_CA]
        return cls(names, code_CA, cell_N)


@dataclass
class Chosen:
    """A selection."""

    pool: Candidates
    budget: Budget
    strategy: str
    axes: dict[str, Margin]
    cells: list[tuple[str, ...]]
    """Values of the axes, of each cell."""
    cell_N: Int64[np.ndarray, " N"]
    capacity_C: Float64[np.ndarray, " C"]
    quota_C: Float64[np.ndarray, " C"]
    plan: Plan | None
    """None where documents were chosen without one."""
    at: Int64[np.ndarray, " n"]
    """Places among the candidates, in the order in which they are given out."""
    parts: dict[str, Float64[np.ndarray, " N"]] = field(default_factory=dict)
    """Of each candidate: rank of quality, length score, merit, score."""
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
    """The selection that a request asks for, whatever its strategy.

    Args:
        vectors: unit vectors of some candidates, for redundancy control.
        label: the corpus's name, for messages.

    Returns:
        the selection; whether its plan could be met is for the caller to judge (``refuse_unmet``).

    Raises:
        RequestError: targets that no document answers to.
    """
    strategy = STRATEGIES[select.strategy]
    if strategy.score is not None:
        return _highest(pool, select.budget, strategy.tag, strategy.score(pool))
    axes = select.axes if strategy.axes is None else strategy.axes(select.axes, pool)
    rank = select.rank if strategy.rank is None else strategy.rank(select.rank)
    most_alike = select.redundancy if strategy.redundancy and vectors is not None else None

    labels = {name: pool.labels[name] for name in axes}
    if select.placebo:
        shuffled = np.argsort(pick.uniform(pool.key_N, seed, turn=7), kind="stable")
        labels = {name: values.take(shuffled) for name, values in labels.items()}
    chosen = _planned(pool, select.budget, axes, labels, f"corpora.{label}.select.axes")

    parts = merits(pool, rank, labels)
    parts["score"] = pick.score(parts["merit"], pool.key_N, rank.temperature, seed)
    order, start_C1 = pick.ranked(parts["score"], chosen.cell_N, len(chosen.cells))
    size_N, put_back = pool.size_N(select.budget.in_tokens), 0
    if most_alike is not None and vectors is not None:
        order, put_back = pick.without_likes(order, start_C1, chosen.quota_C, size_N, vectors, most_alike)
    assert chosen.plan is not None
    if select.budget.in_tokens:
        shares = [(m.group_C, given_G) for m, given_G in zip(chosen.plan.margins, chosen.plan.attained, strict=True)]
        at = pick.take_tokens(order, start_C1, size_N, chosen.quota_C, shares)
    else:
        at = pick.take_documents(order, start_C1, chosen.quota_C.astype(np.int64))
    lot = pick.uniform(pool.key_N[at], seed, turn=1)
    at = at[pick.interleaved(at, chosen.cell_N[at], pool.tokens_N[at], lot)]
    return replace(chosen, at=at, parts=parts, put_back=put_back)


def _planned(pool: Candidates, budget: Budget, axes: Mapping[str, Axis], labels: Mapping[str, Labels], where: str) -> Chosen:
    """The plan, with nothing chosen yet."""
    cells = Cells.of(labels, len(pool))
    capacity_C = np.bincount(cells.cell_N, pool.size_N(budget.in_tokens), minlength=len(cells))
    wanted: dict[str, Margin] = {}
    for a, (name, axis) in enumerate(axes.items()):
        code_C, values = cells.code_CA[:, a], labels[name].values
        supply_V = np.bincount(code_C, capacity_C, len(values))
        groups, share_G, group_V = targets(name, axis, values, supply_V, f"{where}.{name}")
        wanted[name] = Margin(name, groups, share_G * budget.size, group_V[code_C], axis.weight)
    planned = plan(capacity_C, list(wanted.values()), budget.size)
    quota_C = planned.table_C
    if not budget.in_tokens:
        whole_C = rounded(quota_C, capacity_C, planned.margins, planned.attained, round(planned.budget))
        quota_C = whole_C.astype(float)
    nothing = np.zeros(0, dtype=np.int64)
    return Chosen(pool, budget, PLAN.tag, wanted, cells.names, cells.cell_N, capacity_C, quota_C, planned, nothing)


def _highest(pool: Candidates, budget: Budget, tag: str, score_N: Float64[np.ndarray, " N"]) -> Chosen:
    """The highest scores up to the budget."""
    order, size_N = np.lexsort((pool.key_N, -score_N)), pool.size_N(budget.in_tokens)
    if budget.in_tokens:
        at = pick.take_tokens(order, np.array([0, len(order)]), size_N, np.array([float(budget.size)]))
    else:
        at = order[: budget.size]
    parts = merits(pool, Rank(quality=1, length=0), {}) | {"score": score_N}
    capacity_C, quota_C = (np.array([float(sizes.sum())]) for sizes in (size_N, size_N[at]))
    cell_N = np.zeros(len(pool), dtype=np.uint8)
    return Chosen(pool, budget, tag, {}, [()], cell_N, capacity_C, quota_C, None, at, parts)


def merits(pool: Candidates, rank: Rank, labels: Mapping[str, Labels]) -> dict[str, Float64[np.ndarray, " N"]]:
    """The parts of each document's merit, each on one scale."""
    code_N, values = np.zeros(len(pool), dtype=np.uint8), [""]
    if rank.within is not None:
        within = labels.get(rank.within) or pool.labels[rank.within]
        code_N, values = within.code_N, within.values
    parts: dict[str, np.ndarray] = {}
    total = rank.quality + rank.length
    merit_N = np.zeros(len(pool))
    if rank.quality > 0:
        parts["quality_rank"] = pick.mid_rank(pool.quality_N, code_N, len(values))
        merit_N += rank.quality / total * parts["quality_rank"]
    if rank.length > 0:
        ranges = pick.length_ranges(pool.tokens_N, code_N, values, rank.ranges)
        parts["length_score"] = pick.length_score(pool.tokens_N, ranges[code_N, 0], ranges[code_N, 1])
        merit_N += rank.length / total * parts["length_score"]
    return parts | {"merit": merit_N}


def side_by_side(pool: Candidates, select: Select, *, seed: int, label: str) -> dict[str, Chosen]:
    """Every other strategy on these candidates, with this budget."""
    alike = select.model_copy(update={"redundancy": None})
    return {
        tag: choose(pool, alike.model_copy(update={"strategy": tag}), seed=seed, label=label)
        for tag in STRATEGIES
        if tag != PLAN.tag
    }


# what a selection falls short of ---------------------------------------------------------------------------------------


_LISTED = 12
"""Values of an axis that are listed."""


def met(chosen: Chosen, request: Select) -> bool:
    """Whether the request can be met: its targets, or for a strategy that sets its own, the budget."""
    if chosen.plan is None:
        return bool(chosen.capacity_C.sum() >= request.budget.size)
    return chosen.plan.feasible if _has_targets(request) else "budget" not in chosen.plan.missing


def _has_targets(request: Select) -> bool:
    return "axes" not in STRATEGIES[request.strategy].replaces


def shortfall(chosen: Chosen, request: Select) -> list[str]:
    """What is short, in lines; empty where the request is met."""
    if met(chosen, request):
        return []
    unit, wanted = request.budget.unit, request.budget.size
    there = chosen.plan.budget if chosen.plan is not None else float(chosen.capacity_C.sum())
    missing, shorts = (chosen.plan.missing, chosen.plan.short) if chosen.plan is not None else ({}, {})
    lines = []
    if _has_targets(request):
        lines.append(f"at least {missing['total']:,.0f} of {wanted:,} {unit} must miss their targets, in any selection")
    if there < wanted:
        lines.append(f"budget: {wanted - there:,.0f} {unit} more than the {there:,.0f} that are there")
    for axis, short in shorts.items():
        worst = sorted(short.items(), key=lambda kv: -kv[1])
        listed = ", ".join(f"{value} {lack:,.0f}" for value, lack in worst[:_LISTED]) + (", ..." if worst[_LISTED:] else "")
        if worst or missing.get(axis, 0) > 0:
            which = f"; there is too little of {listed}" if worst else ""
            lines.append(f"{axis}: {missing.get(axis, 0):,.0f}{which}")
    return lines


def refuse_unmet(chosen: Chosen, request: Select, label: str) -> None:
    """Refuse what cannot be met, unless the recipe takes what comes nearest.

    Raises:
        RequestError: with the certificate and every value that is short.
    """
    if not request.relax and (lines := shortfall(chosen, request)):
        raise RequestError(
            "the plan cannot be met",
            where=f"corpora.{label}.select",
            found="\n            ".join(lines),
            do="lower the budget, change the targets, or take what comes nearest: --relax (select.relax: true)",
        )
