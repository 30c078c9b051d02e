"""Intervals cover the truth about as often as they say, and are the same whatever else is in the table."""

from __future__ import annotations

import numpy as np

from coterie.evaluation.bootstrap import resample


def test_intervals_cover_simulated_truth() -> None:
    """Documents of unequal length whose mean loss differs: 300 worlds, 60 documents each."""
    rng = np.random.default_rng(5)
    hits = 0
    for world in range(300):
        tokens = rng.integers(10, 400, 60)
        nats = tokens * rng.normal(3.0, 0.5, 60)
        drawn = resample(nats[None], tokens[None].astype(float), np.zeros(60, int), 1, resamples=300, seed=world)
        lo, hi = drawn.interval(0)
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
        intervals = []
        for apart in (0.0, 30.0):
            nats = tokens * (3.0 + apart * group + noise)
            drawn = resample(nats[None], tokens[None].astype(float), group, 2, resamples=200, seed=world)
            intervals.append(drawn.interval(0))
        truth = 3.0 + 30.0 * tokens[group == 1].sum() / tokens.sum()
        hits += intervals[1][0] <= truth <= intervals[1][1]
        widths.append([hi - lo for lo, hi in intervals])
    assert 0.86 <= hits / 150 <= 0.99
    assert np.allclose(*np.transpose(widths), atol=1e-5)


def test_width_is_the_standard_error() -> None:
    rng = np.random.default_rng(1)
    nats = rng.normal(3.0, 1.0, (1, 2000))
    lo, hi = resample(nats, np.ones((1, 2000)), np.zeros(2000, int), 1, resamples=2000, seed=0).interval(0)
    assert np.isclose(hi - lo, 2 * 1.96 * nats.std() / 2000**0.5, rtol=0.1)


def test_draws_are_shared_and_independent_of_chunks(monkeypatch) -> None:
    rng = np.random.default_rng(2)
    above, below = rng.random((3, 50)), rng.random((3, 50)) + 1
    group = rng.integers(0, 4, 50)
    whole = resample(above, below, group, 4, resamples=64, seed=3)
    alone = resample(above[1:2], below[1:2], group, 4, resamples=64, seed=3)
    assert alone.interval(0, 2) == whole.interval(1, 2)
    monkeypatch.setattr("coterie.evaluation.bootstrap._CHUNK", 120)
    pieces = resample(above, below, group, 4, resamples=64, seed=3)
    assert np.allclose(pieces.above_RMG, whole.above_RMG)


def test_no_document_no_interval() -> None:
    empty = resample(np.zeros((1, 3)), np.zeros((1, 3)), np.zeros(3, int), 1, resamples=20, seed=0)
    assert empty.interval(0) is None
    assert resample(np.ones((1, 3)), np.ones((1, 3)), np.zeros(3, int), 1, resamples=0, seed=0).interval(0) is None
