"""The plan: how many tokens (or documents) each cell of the axes gives, with a certificate of what cannot be met.

1. *Targets* of each axis (``targets``), times the budget.
2. *Certificate*: a linear program finds the least total by which any table within the pool's capacities must miss the
targets.
   Its optimum is 0 exactly if the plan can be met; no other method could do better.
3. *What is short is shared out*: on each axis, values without enough give all they have and the others more, in proportion
   (water-filling). Where the axes together still cannot have it, the linear program moves as little as it must.
4. *The least opinionated table* with these margins: closest to the pool's own table in relative entropy, found by iterative
   proportional fitting that never exceeds a capacity. Where some cell must be empty it only comes near; then a last linear
   program takes the table with exactly these margins that differs least from it.
5. *Whole documents*: every cell and every margin rounds up or down, and the total is exact (controlled rounding).

Sources: Deming and Stephan 1940 (fitting), Csiszar 1975 (its optimum), Cox 1987 (controlled rounding).

`A` axes, `V` values of an axis, `G` groups of them, `C` cells that have documents, `N` documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Float64, Int64
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_matrix, csr_matrix, hstack, identity, vstack

from coterie.errors import RequestError
from coterie.select.plan_settings import Axis, named

_TOLERANCE = 1e-6
"""Of the budget: what is missed by less is met."""


@dataclass(frozen=True)
class Margin:
    """One axis of a plan, over the cells."""

    name: str
    groups: list[str]
    target_G: Float64[np.ndarray, " G"]
    """In units; sums to the budget."""
    group_C: Int64[np.ndarray, " C"]
    """Group of each cell; -1 where it may not be used."""
    weight: float = 1.0

    def of(self, table_C: np.ndarray) -> Float64[np.ndarray, " G"]:
        return np.bincount(self.group_C, table_C, minlength=len(self.groups))


def targets(
    name: str, axis: Axis, values: list[str], supply_V: Float64[np.ndarray, " V"], where: str
) -> tuple[list[str], Float64[np.ndarray, " G"], Int64[np.ndarray, " V"]]:
    """Share out the values of an axis: globs, alternatives, mixes of the pool's shares and equal ones.

    Args:
        values: in a fixed order.
        supply_V: tokens (or documents) of each value in the pool.
        where: the axis's place in the recipe.

    Returns:
        the groups of values that share a target (its keys, or the values themselves), the share of each group, the group of
        each value: -1 for values that no key names, which are not chosen.

    Raises:
        RequestError: a key that no value answers to; a value that two keys name.
    """
    if axis.target is None:
        mix, there = axis.mix or 0.0, supply_V > 0
        natural = supply_V / max(supply_V.sum(), 1)
        share = (1 - mix) * natural + mix * there / max(there.sum(), 1)
        return values, share, np.arange(len(values))
    keys = list(axis.target)
    group_V = np.full(len(values), -1)
    for v, value in enumerate(values):
        hits = [g for g, key in enumerate(keys) if named(key, value)]
        exact = [g for g in hits if keys[g] == value]
        if len(exact or hits) > 1:
            raise RequestError(
                f"{value!r} is named by two targets",
                where=f"{where}.target",
                found=", ".join(keys[g] for g in hits),
                do="name it once",
            )
        if hits:
            group_V[v] = (exact or hits)[0]
    for g, key in enumerate(keys):
        if not (group_V == g).any() and axis.target[key] > 0:
            raise RequestError(
                f"no document has the {name} {key!r}",
                where=f"{where}.target",
                expected=", ".join(v for v, s in zip(values, supply_V, strict=True) if s > 0),
                found=key,
                do="correct the name, or take the target out and share it among the others",
            )
    return keys, np.array([axis.target[k] for k in keys]), group_V


@dataclass(frozen=True)
class Plan:
    """A table over cells that can be had."""

    table_C: Float64[np.ndarray, " C"]
    margins: list[Margin]
    """What was asked for."""
    attained: list[Float64[np.ndarray, " G"]]
    """What is given."""
    missing: dict[str, float]
    """Units by which each axis must miss its targets at the optimum of the certificate, and their `total`."""
    short: dict[str, dict[str, float]]
    """Of each axis, values that have less than their target, and by how much: what no table can change."""
    budget: float
    requested: float
    iterations: int
    """Of the fitting."""

    @property
    def feasible(self) -> bool:
        return self.missing["total"] <= _TOLERANCE * self.requested


def plan(capacity_C: Float64[np.ndarray, " C"], margins: Sequence[Margin], budget: float) -> Plan:
    """Fit a table to the margins.

    Args:
        capacity_C: units that each cell has.
        margins: of each axis; a cell's group is -1 where it may not be used.
        budget: units to choose.

    Returns:
        the plan; if the budget is above what the cells hold, it gives all of that, and `missing` says so.
    """
    usable_C = np.ones(len(capacity_C), dtype=bool)
    for margin in margins:
        usable_C &= (margin.group_C >= 0) & (np.where(margin.group_C >= 0, margin.target_G[margin.group_C], 0) > 0)
    room_C = np.where(usable_C, capacity_C, 0.0)
    total = min(budget, float(room_C.sum()))
    given = [Margin(m.name, m.groups, m.target_G, np.maximum(m.group_C, 0), m.weight) for m in margins]
    short = {m.name: _short(m, room_C) for m in given}
    if total <= 0:
        zero = [np.zeros(len(m.groups)) for m in given]
        lost = {"budget": budget, **{m.name: budget for m in given}, "total": budget * max(len(given), 1)}
        return Plan(np.zeros_like(room_C), given, zero, lost, short, 0.0, budget, 0)
    missing = {"budget": budget - total} if budget > total else {}
    _, below = _least_missed(room_C, [m.target_G for m in given], given, total, budget)
    missing |= {m.name: b for m, b in zip(given, below, strict=True)}
    missing["total"] = sum(below) if below else budget - total
    filled = [water_fill(m.of(room_C), m.target_G, total) for m in given]
    vertex_C, moved = _least_missed(room_C, filled, given, total, budget)
    attained = filled if sum(moved) <= _TOLERANCE * budget else [m.of(vertex_C) for m in given]
    table_C, iterations, met = fit(room_C, given, attained, total)
    if not met:
        table_C = _repaired(table_C, room_C, given, attained, budget)
    return Plan(table_C, given, attained, missing, short, total, budget, iterations)


def _short(margin: Margin, room_C: np.ndarray) -> dict[str, float]:
    lack = margin.target_G - margin.of(room_C)
    return {g: float(x) for g, x in zip(margin.groups, lack, strict=True) if x > _TOLERANCE * margin.target_G.sum()}


def water_fill(capacity_G: np.ndarray, target_G: np.ndarray, total: float) -> Float64[np.ndarray, " G"]:
    """a = min(capacity, level * target) with the level at which they sum to the total."""
    full = np.divide(capacity_G, target_G, out=np.full(len(target_G), np.inf), where=target_G > 0)
    capacity_G = np.where(target_G > 0, capacity_G, 0.0)
    level = _level(capacity_G, np.where(target_G > 0, target_G, 0.0), full, total)
    return np.minimum(capacity_G, level * target_G)


def _level(capacity: np.ndarray, slope: np.ndarray, full: np.ndarray, total: float) -> float:
    """Where the sum of min(capacity, level * slope) reaches the total; ``full`` is the level at which each is at
    capacity."""
    order = np.argsort(full, kind="stable")
    full_sum = np.concatenate([[0.0], np.cumsum(capacity[order])])
    rest = slope.sum() - np.concatenate([[0.0], np.cumsum(slope[order])])
    at = full_sum[:-1] + np.where(np.isfinite(full[order]), full[order], 0) * rest[:-1]  # the sum when the i-th fills up
    i = int(np.searchsorted(at[np.isfinite(full[order])], total * (1 - 1e-12)))
    return float((total - full_sum[i]) / rest[i]) if i < len(order) and rest[i] > 0 else float(full[order[-1]])


def _groups(margins: Sequence[Margin], C: int) -> csr_matrix:
    """[sum of G, C]: which cells count in which group."""
    starts = np.cumsum([0, *(len(m.groups) for m in margins)])
    rows = [m.group_C + start for m, start in zip(margins, starts[:-1], strict=True)]
    at = np.concatenate([*rows, np.zeros(0, np.int64)])
    return coo_matrix((np.ones(len(at)), (at, np.tile(np.arange(C), len(margins)))), shape=(int(starts[-1]), C)).tocsr()


def _least_missed(
    room_C: np.ndarray, wanted: Sequence[np.ndarray], margins: Sequence[Margin], total: float, scale: float
) -> tuple[np.ndarray, list[float]]:
    """The table of this total that misses the wanted margins least, and how much each axis stays below its own.

    minimise sum of weight * (under + over) subject to: sums of groups + under - over = wanted; sum = total; 0 <= x <=
    room."""
    C = len(room_C)
    if not margins:
        return room_C * (total / room_C.sum()), []
    A = _groups(margins, C)
    R = A.shape[0]
    want = np.concatenate(list(wanted)) / scale
    cost = np.concatenate([np.full(len(m.groups), m.weight) for m in margins])
    eye = identity(R, format="csr")
    one = csr_matrix(np.concatenate([np.ones(C), np.zeros(2 * R)])[None])
    wanted_too = np.concatenate([want, [total / scale]])
    x = _solved(np.concatenate([np.zeros(C), cost, cost]), vstack([hstack([A, eye, -eye]), one]), wanted_too, room_C / scale)
    x, under = np.clip(x[:C], 0, None) * scale, x[C : C + R] * scale
    bounds = np.cumsum([0, *(len(m.groups) for m in margins)])
    return x, [float(under[a:b].sum()) for a, b in pairwise(bounds)]


def _solved(cost: np.ndarray, rows: csr_matrix, equal: np.ndarray, room_C: np.ndarray) -> np.ndarray:
    """The x >= 0 of least cost with rows @ x = equal; the first are cells, at most their room."""
    upper = np.concatenate([room_C, np.full(len(cost) - len(room_C), np.inf)])
    bounds = np.stack([np.zeros(len(cost)), upper], 1)
    solved = linprog(cost, A_eq=rows.tocsr(), b_eq=equal, bounds=bounds, method="highs")
    assert solved.status == 0, solved.message
    return solved.x


def fit(
    room_C: np.ndarray, margins: Sequence[Margin], wanted: Sequence[np.ndarray], total: float, most: int = 200
) -> tuple[np.ndarray, int, bool]:
    """Iterative proportional fitting of the pool's own table, capped at its capacities.

    Each step scales the cells of one group by the factor at which they sum to the group's share, none above its capacity.

    Returns:
        the table, the number of rounds, and whether it has the margins."""
    if not margins:
        return room_C * (total / room_C.sum()), 1, True
    free_C, table_C = room_C.copy(), room_C
    members = [[np.flatnonzero((m.group_C == g) & (room_C > 0)) for g in range(len(m.groups))] for m in margins]
    for step in range(1, most + 1):
        for a in range(len(margins)):
            for g, cells in enumerate(members[a]):
                slope, cap = free_C[cells], room_C[cells]
                if wanted[a][g] <= 0 or not slope.any():
                    free_C[cells] = 0.0
                    continue
                full = np.divide(cap, slope, out=np.full(len(cells), np.inf), where=slope > 0)
                cap = np.where(slope > 0, cap, 0.0)
                free_C[cells] = slope * _level(cap, slope, full, min(wanted[a][g], cap.sum()))
        table_C = np.minimum(room_C, free_C)
        worst = max(float(np.abs(m.of(table_C) - w).max()) for m, w in zip(margins, wanted, strict=True))
        if worst <= 1e-8 * total:
            return table_C, step, True
        if float(free_C.max()) > 1e60:
            break
    return table_C, step, False


def _repaired(
    table_C: np.ndarray, room_C: np.ndarray, margins: Sequence[Margin], wanted: Sequence[np.ndarray], scale: float
) -> np.ndarray:
    """The table with the wanted margins that differs least, in sum, from one that nearly has them."""
    C = len(room_C)
    A, eye = _groups(margins, C), identity(C, format="csr")
    rows = vstack([hstack([A, csr_matrix((A.shape[0], 2 * C))]), hstack([eye, eye, -eye])])
    cost = np.concatenate([np.zeros(C), np.ones(2 * C)])
    x = _solved(cost, rows, np.concatenate([*wanted, table_C]) / scale, room_C / scale)
    return np.clip(x[:C] * scale, 0, room_C)


def rounded(
    table_C: np.ndarray, capacity_C: np.ndarray, margins: Sequence[Margin], attained: Sequence[np.ndarray], total: int
) -> Int64[np.ndarray, " C"]:
    """Whole numbers: each cell and each margin rounded up or down, the total exact, the largest parts rounded up.

    With more than two axes a margin may have to move further than to its next whole number; then as little as possible."""
    low_C = np.floor(table_C + 1e-6).astype(np.int64)
    part_C = np.clip(table_C - low_C, 0, 1)
    up_C = (np.minimum(low_C + 1, np.floor(capacity_C)) > low_C) & (part_C > 1e-6)
    need = total - int(low_C.sum())
    if need == 0:
        return low_C
    if need > up_C.sum():  # parts of a document that no cell has: whoever has room
        up_C = np.floor(capacity_C) > low_C
    if not margins:
        order = np.argsort(-np.where(up_C, part_C, -1), kind="stable")
        low_C[order[:need]] += 1
        return low_C
    A = _groups(margins, len(table_C))
    R, C = A.shape
    start, want = A @ low_C.astype(float), np.concatenate(list(attained))
    least, most = np.floor(want + 1e-6) - start, np.ceil(want - 1e-6) - start
    eye = identity(R, format="csr")
    rows = vstack([hstack([A, eye, -eye]), csr_matrix(np.concatenate([np.ones(C), np.zeros(2 * R)])[None])]).tocsr()
    solved = milp(
        np.concatenate([1e-3 * (1 - 2 * part_C), np.ones(2 * R)]),
        constraints=LinearConstraint(rows, np.concatenate([least, [need]]), np.concatenate([most, [need]])),
        bounds=Bounds(np.zeros(C + 2 * R), np.concatenate([up_C.astype(float), np.full(2 * R, np.inf)])),
        integrality=np.concatenate([np.ones(C), np.zeros(2 * R)]),
        options={"time_limit": 20, "mip_rel_gap": 1e-4},
    )
    assert solved.x is not None, solved.message
    return low_C + np.rint(solved.x[:C]).astype(np.int64)
