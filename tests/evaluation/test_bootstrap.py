"""Intervals cover the truth about as often as they say, and are the same whatever else is in the table."""

from __future__ import annotations

import numpy as np
import pytest

from coterie.evaluation.compare import intervals


def one(above: np.ndarray, below: np.ndarray, resamples: int, seed: int) -> list[float]:
    """Ends of the interval of one row in one group."""
    return intervals(above[None], below[None] * 1.0, np.zeros(len(above), int), 1, resamples=resamples, seed=seed)[
        0, -1
    ].tolist()


def test_intervals_cover_simulated_truth() -> None:
    """Documents of unequal length whose mean loss differs: 300 worlds, 60 documents each."""
    rng = np.random.default_rng(5)
    hits = 0
    for world in range(300):
        tokens = rng.integers(10, 400, 60)
        lo, hi = one(tokens * rng.normal(3.0, 0.5, 60), tokens, 300, world)
        hits += lo <= 3.0 <= hi
    assert 0.89 <= hits / 300 <= 0.98


def test_intervals_over_groups_cover_and_do_not_feel_how_far_apart_groups_are() -> None:
    """Few long documents of one group beside many short ones of another, 30 nats apart."""
    rng = np.random.default_rng(6)
    group = np.repeat([0, 1], [20, 200])
    tokens = np.where(group == 0, 1000, 20)
    hits, widths = 0, []
    for world in range(150):
        noise = rng.normal(0, 0.5, 220)
        rows = np.stack([tokens * (3.0 + apart * group + noise) for apart in (0.0, 30.0)])
        ends = intervals(rows, np.stack([tokens, tokens]) * 1.0, group, 2, resamples=200, seed=world)[:, -1]
        truth = 3.0 + 30.0 * tokens[group == 1].sum() / tokens.sum()
        hits += ends[1, 0] <= truth <= ends[1, 1]
        widths.append(ends[:, 1] - ends[:, 0])
    assert 0.86 <= hits / 150 <= 0.99
    assert np.allclose(*np.transpose(widths))


def test_width_is_that_of_the_standard_error() -> None:
    nats = np.random.default_rng(1).normal(3.0, 1.0, 2000)
    lo, hi = one(nats, np.ones(2000), 2000, 0)
    assert np.isclose(hi - lo, 2 * 1.96 * nats.std() / 2000**0.5, rtol=0.1)


def test_draws_are_shared_by_rows_and_independent_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    above, below, group = rng.random((3, 50)), rng.random((3, 50)) + 1, rng.integers(0, 4, 50)
    whole = intervals(above, below, group, 4, resamples=64, seed=3)
    assert np.allclose(intervals(above[1:2], below[1:2], group, 4, resamples=64, seed=3), whole[1:2])
    monkeypatch.setattr("coterie.evaluation.compare._CHUNK", 120)
    assert np.allclose(intervals(above, below, group, 4, resamples=64, seed=3), whole)


def test_no_document_no_interval() -> None:
    assert np.isnan(one(np.zeros(3), np.zeros(3), 20, 0)).all()
    assert np.isnan(one(np.ones(3), np.ones(3), 0, 0)).all()
    some = intervals(np.array([[1.0, 2, 0]]), np.array([[1.0, 1, 0]]), np.array([0, 0, 2]), 3, resamples=50, seed=0)[0]
    assert np.isnan(some[1:3]).all()
    assert (some[3] == some[0]).all()
