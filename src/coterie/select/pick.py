"""Inside the cells of a plan: which documents, in which order they are given out.

The score of a document is u / temperature + Gumbel noise, u the weighted mean of its quality's mid-rank (within the values
of one axis) and of its length score; the first documents of each cell are taken (Gumbel top-k, Vieira 2014: a draw without
replacement in proportion to exp(u / temperature)). The noise is a hash of seed and document id, so the draw does not know in
what order documents came, from which files, or on how many threads.

`N` documents of the pool, `C` cells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from coterie.select.plan_settings import named
from coterie.select.words import mixed

Vectors = Callable[[np.ndarray], np.ndarray]
"""Unit vectors of some rows, [n, E]."""


def uniform(key_N: UInt64[np.ndarray, " N"], seed: int, turn: int = 0) -> Float64[np.ndarray, " N"]:
    """A number in (0, 1) from seed and key alone: 53 bits of a hash."""
    salt = np.uint64((seed * 0x9E3779B97F4A7C15 + turn * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D) % 2**64)
    bits = mixed(mixed(key_N ^ salt) + salt)
    bits >>= np.uint64(11)
    return (bits.astype(np.float64) + 0.5) * 2.0**-53


def mid_rank(value_N: np.ndarray, group_N: np.ndarray, groups: int) -> Float64[np.ndarray, " N"]:
    """Rank among the documents of the same group, as a share in (0, 1); equal values share the middle of their ranks."""
    N = len(value_N)
    if not N:
        return np.zeros(0)
    order = np.argsort(value_N, kind="stable")
    if groups > 1:
        order = order[np.argsort(group_N[order].astype(np.min_scalar_type(groups)), kind="stable")]
    value, group = value_N[order], group_N[order]
    new = np.empty(N, dtype=bool)
    new[0] = True
    new[1:] = (value[1:] != value[:-1]) | (group[1:] != group[:-1])
    start = np.flatnonzero(new)
    size = np.diff(np.append(start, N))
    count = np.bincount(group_N, minlength=groups)
    first = np.cumsum(count) - count
    out = np.empty(N)
    out[order] = np.repeat((start - first[group[start]] + size / 2) / count[group[start]], size)
    return out


def length_ranges(
    tokens_N: np.ndarray, group_N: np.ndarray, values: list[str], given: Mapping[str, tuple[int, int]]
) -> Float64[np.ndarray, "V 2"]:
    """Range of each value: as given (by name or glob), else its middle half."""
    out = np.zeros((len(values), 2))
    order = np.argsort(group_N.astype(np.min_scalar_type(max(len(values), 1))), kind="stable")
    bounds = np.searchsorted(group_N[order], np.arange(len(values) + 1))
    for v, value in enumerate(values):
        mine = tokens_N[order[bounds[v] : bounds[v + 1]]]
        hit = given.get(value) or next((r for key, r in given.items() if named(key, value)), None)
        if hit is not None:
            out[v] = hit
        elif len(mine):
            out[v] = np.percentile(mine, (25, 75))
    return out


def length_score(tokens_N: np.ndarray, low_N: np.ndarray, high_N: np.ndarray) -> Float64[np.ndarray, " N"]:
    """1 inside the range, exp(-(distance / half its width)^2) outside; never negative."""
    width = np.maximum((high_N - low_N) / 2, 1)
    distance = np.maximum(np.maximum(low_N - tokens_N, tokens_N - high_N), 0) / width
    return np.exp(-(distance**2))


def score(merit_N: np.ndarray, key_N: np.ndarray, temperature: float, seed: int) -> Float64[np.ndarray, " N"]:
    """What decides inside a cell; at temperature 0 merit alone, equal merits by lot."""
    lot = uniform(key_N, seed)
    if temperature == 0:
        return merit_N + lot * 1e-9
    return merit_N / temperature - np.log(-np.log(lot))


def ranked(score_N: np.ndarray, cell_N: np.ndarray, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows by cell, the best first; and where each cell begins [C+1]."""
    order = np.argsort(-score_N)
    order = order[np.argsort(cell_N[order].astype(np.min_scalar_type(max(cells, 1))), kind="stable")]
    count = np.bincount(cell_N, minlength=cells)
    return order, np.concatenate([[0], np.cumsum(count)])


def take_documents(order: np.ndarray, start_C1: np.ndarray, quota_C: Int64[np.ndarray, " C"]) -> Int64[np.ndarray, " n"]:
    """The first so many of each cell."""
    return np.concatenate([order[a : a + q] for a, q in zip(start_C1[:-1], quota_C, strict=True)] or [order[:0]])


Shares = Sequence[tuple[np.ndarray, np.ndarray]]
"""Of each axis: the group of every cell [C], and the tokens planned for every group [G]."""


def take_tokens(
    order: np.ndarray, start_C1: np.ndarray, tokens_N: np.ndarray, quota_C: np.ndarray, shares: Shares = ()
) -> Int64[np.ndarray, " n"]:
    """Whole documents of each cell up to its tokens. What a cell is over or under is carried to the next; then single
    documents are added or left out where that brings the axes' shares nearer; a last round brings the total to within half a
    document wherever documents are left. A cell without a quota gives nothing."""
    sizes = [tokens_N[order[a:b]].astype(float) for a, b in pairwise(start_C1)]
    took: list[int] = []
    carry = 0.0
    for size, quota in zip(sizes, quota_C, strict=True):
        want = quota + carry
        upto = np.cumsum(size)
        n = int(np.searchsorted(upto, want, side="right")) if quota > 0 else 0
        if quota > 0 and n < len(upto) and upto[n] - want < want - (upto[n - 1] if n else 0):
            n += 1
        took.append(n)
        carry = want - (float(upto[n - 1]) if n else 0.0)
    carry = _evened(took, sizes, np.asarray(quota_C), carry, shares)
    for c in np.argsort(-np.asarray(quota_C), kind="stable"):
        while quota_C[c] > 0 and took[c] < len(sizes[c]) and sizes[c][took[c]] < 2 * carry:
            carry -= sizes[c][took[c]]
            took[c] += 1
        while took[c] and sizes[c][took[c] - 1] < -2 * carry:
            took[c] -= 1
            carry += sizes[c][took[c]]
    return np.concatenate([order[a : a + n] for a, n in zip(start_C1[:-1], took, strict=True)] or [order[:0]])


def _evened(took: list[int], sizes: list[np.ndarray], quota_C: np.ndarray, carry: float, shares: Shares) -> float:
    """Add or leave out the next document of a cell, in place, while that lowers the sum of squared deviations of the axes'
    shares and of the total; no cell moves further from its quota than a document."""
    given = np.array([size[:n].sum() for size, n in zip(sizes, took, strict=True)])
    over = [np.bincount(group, given, minlength=len(want)) - want for group, want in shares]
    groups = [[int(group[c]) for group, _ in shares] for c in range(len(took))]
    moved = bool(shares)
    while moved:
        moved = False
        for c in np.flatnonzero(quota_C > 0).tolist():
            for step in (1, -1):
                n = took[c] + (step - 1) // 2
                if not 0 <= n < len(sizes[c]):
                    continue
                size = step * sizes[c][n]
                near = abs(given[c] + size - quota_C[c]) <= sizes[c][n]
                now = [e[g] for e, g in zip(over, groups[c], strict=True)]
                gain = sum(size * (2 * e + size) for e in now) + size * (size - 2 * carry)
                if near and gain < -1e-9:
                    took[c] += step
                    given[c] += size
                    carry -= size
                    for e, g in zip(over, groups[c], strict=True):
                        e[g] += size
                    moved = True
    return carry


def without_likes(
    order: np.ndarray, start_C1: np.ndarray, need_C: np.ndarray, size_N: np.ndarray, vectors: Vectors, most: float
) -> tuple[np.ndarray, int]:
    """Reorder each cell so that documents like an earlier one (cosine above ``most``) come after the others, looking at a
    shortlist of three times what the cell needs.

    Returns:
        the new order, and how many were put back.
    """
    order, moved = order.copy(), 0
    for a, b, need in zip(start_C1[:-1], start_C1[1:], need_C, strict=True):
        upto = np.cumsum(size_N[order[a:b]])
        last = min(int(np.searchsorted(upto, 3 * need)) + 1, b - a)
        rows = order[a : a + last]
        if need <= 0 or last < 2:
            continue
        at = np.argsort(rows, kind="stable")
        got = vectors(rows[at])
        vector = np.empty_like(got)
        vector[at] = got
        apart, back = [0], list[int]()
        for i in range(1, last):
            (back if float((vector[apart] @ vector[i]).max()) > most else apart).append(i)
        order[a : a + last] = rows[apart + back]
        moved += len(back)
    return order, moved


def interleaved(rows: np.ndarray, cell_n: np.ndarray, size_n: np.ndarray, lot_n: np.ndarray) -> Int64[np.ndarray, " n"]:
    """Order in which each cell has had its share at any moment: a document stands at the tokens before it, and a part of its
    own, as a share of the cell's. That part differs from cell to cell (golden ratio), so that small cells do not all meet in
    the middle. Inside a cell documents come by lot, so that scores do not drift. Returns places in ``rows``."""
    by_cell = np.lexsort((lot_n, cell_n))
    cell, size = cell_n[by_cell], size_n[by_cell].astype(float)
    total = np.bincount(cell, size, minlength=int(cell.max()) + 1 if len(cell) else 0)
    upto = np.cumsum(size)
    before = np.concatenate([[0.0], np.cumsum(total)])[cell] if len(cell) else upto
    phase = ((np.arange(len(total)) + 0.5) * 0.6180339887498949) % 1
    time = (upto - before - size * phase[cell]) / np.maximum(total[cell], 1e-12) if len(cell) else upto
    return by_cell[np.lexsort((cell, time))]
