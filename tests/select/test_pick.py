"""Ranks, draws, budgets and order, against slow ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.select import pick
from coterie.select.profile import key_of

KEYS = key_of([f"d{i}" for i in range(5000)])


def test_the_lot_never_changes() -> None:
    """Stored selections are checked against these: a change of the hash is a change of every seed."""
    assert key_of(["doc-42"]).tolist() == [7450926560430608582]
    assert pick.uniform(key_of(["doc-42", "x"]), 7).tolist() == pytest.approx([0.9820631249, 0.5068307734], abs=1e-9)


def test_the_lot_is_uniform_and_seeds_are_independent() -> None:
    one, two = pick.uniform(KEYS, 0), pick.uniform(KEYS, 1)
    assert one.min() > 0
    assert one.max() < 1
    counts = np.histogram(one, 20, (0, 1))[0]
    assert ((counts - 250) ** 2 / 250).sum() < 50  # chi square with 19 degrees of freedom: 43.8 has p = 0.001
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.05
    assert abs(np.corrcoef(one, pick.uniform(KEYS, 0, turn=1))[0, 1]) < 0.05


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), max_size=30))
def test_mid_ranks(pairs: list[tuple[int, int]]) -> None:
    value, group = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs], int)
    got = pick.mid_rank(value, group, 3)
    for i, (v, g) in enumerate(pairs):
        same = [w for w, h in pairs if h == g]
        assert got[i] == pytest.approx((sum(w < v for w in same) + sum(w == v for w in same) / 2) / len(same))


def test_lengths() -> None:
    tokens = np.array([100, 200, 300, 400, 500, 1700])
    got = pick.length_score(tokens, np.full(6, 200.0), np.full(6, 400.0))
    assert got.tolist() == pytest.approx([np.exp(-1), 1, 1, 1, np.exp(-1), 0], abs=1e-6)
    assert (got >= 0).all()
    ranges = pick.length_ranges(
        np.array([1, 2, 3, 4, 5, 9]), np.array([0, 0, 0, 0, 0, 1]), ["a", "story_b"], {"story_*": (3, 7)}
    )
    assert ranges.tolist() == [[2, 4], [3, 7]]


def test_gumbel_draws_in_proportion_and_without_replacement() -> None:
    """The first of three with merits u is drawn with probability exp(u / t) / sum."""
    merit, wins = np.array([0.0, 0.3, 0.6]), np.zeros(3)
    for seed in range(4000):
        wins[np.argmax(pick.score(merit, KEYS[:3], 0.5, seed))] += 1
    expected = np.exp(merit / 0.5) / np.exp(merit / 0.5).sum()
    assert np.abs(wins / 4000 - expected).max() < 0.03
    strict = pick.score(np.array([0.2, 0.9, 0.9]), KEYS[:3], 0, 5)
    assert np.argmin(strict) == 0


@given(st.data())
def test_whole_documents_up_to_the_budget(data: st.DataObject) -> None:
    """The total is off by half a document at most, unless nothing is left to give; each cell by one document and the
    carry."""
    cells = data.draw(st.integers(1, 5))
    N = data.draw(st.integers(1, 60))
    tokens = np.array([data.draw(st.integers(1, 50)) for _ in range(N)])
    cell = np.array([data.draw(st.integers(0, cells - 1)) for _ in range(N)])
    order, start = pick.ranked(pick.uniform(KEYS[:N], 0), cell, cells)
    room = np.bincount(cell, tokens, minlength=cells)
    quota = room * np.array([data.draw(st.sampled_from([0.0, 0.0, 1.0]) | st.floats(0, 1)) for _ in range(cells)])
    taken = pick.take_tokens(order, start, tokens, quota)
    assert len(set(taken.tolist())) == len(taken)
    for c in range(cells):  # the best of each cell, in order
        mine = [r for r in taken if cell[r] == c]
        assert mine == order[start[c] : start[c] + len(mine)].tolist()
        assert quota[c] > 0 or not mine, "what the plan leaves out is not chosen to fill up"
    off = tokens[taken].sum() - quota.sum()
    left = [tokens[r] for r in range(N) if r not in set(taken.tolist()) and quota[cell[r]] > 0]
    assert abs(off) <= tokens.max() / 2 + 1e-6 or (off < 0 and not left) or off < tokens.max()


def test_ranked_is_by_cell_then_score() -> None:
    score, cell = np.array([1.0, 5, 3, 4, 2]), np.array([1, 0, 1, 0, 1])
    order, start = pick.ranked(score, cell, 3)
    assert order.tolist() == [1, 3, 2, 4, 0]
    assert start.tolist() == [0, 2, 5, 5]


@given(st.permutations(range(40)))
def test_the_order_given_out_keeps_the_mix_and_does_not_know_the_order_that_came(shuffle: list[int]) -> None:
    cell = np.repeat([0, 1, 2, 3], [20, 12, 6, 2])
    size = np.ones(40, dtype=int)
    lot = pick.uniform(KEYS[:40], 3)
    plain = pick.interleaved(np.arange(40), cell, size, lot)
    moved = np.array(shuffle)
    again = pick.interleaved(moved, cell[moved], size[moved], lot[moved])
    assert moved[again].tolist() == plain.tolist()
    for upto in range(1, 41):
        got = np.bincount(cell[plain[:upto]], minlength=4)
        assert np.abs(got - np.array([20, 12, 6, 2]) * upto / 40).max() <= 1.6


def test_likes_come_after_the_others() -> None:
    vectors = np.array([[1, 0], [1, 0.01], [0, 1], [0.01, 1], [1, 1]], dtype=float)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order, moved = pick.without_likes(
        np.arange(5), np.array([0, 5]), np.array([3.0]), np.ones(5), lambda rows: vectors[rows], 0.95
    )
    assert moved == 2
    assert order.tolist() == [0, 2, 4, 1, 3]
