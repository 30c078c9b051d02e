"""Packing: every piece once, nothing overfull, as few sequences as best fit promises."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coterie.corpora.packing import pack


def slow_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """The textbook's best-fit decreasing, by search: the room left in each sequence."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if fitting:
            best = min(fitting, key=lambda i: rooms[i])
            rooms[best] -= length
        else:
            rooms.append(capacity - length)
    return rooms


@given(st.integers(2, 70).flatmap(lambda c: st.tuples(st.just(c), st.lists(st.integers(1, c), min_size=1, max_size=120))))
def test_nothing_is_overfull_and_the_fit_is_the_best(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    block = pack(np.array(lengths), capacity)
    used = np.bincount(block, weights=lengths)
    assert used.min() > 0
    assert used.max() <= capacity
    assert sorted(capacity - used) == sorted(slow_best_fit(lengths, capacity))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_sequences_are_numbered_by_their_earliest_piece(lengths: list[int]) -> None:
    block = pack(np.array(lengths), 50)
    seen = list(dict.fromkeys(block.tolist()))
    assert seen == list(range(len(seen)))


def test_a_hundred_thousand_documents_take_seconds_and_leave_little_room() -> None:
    length = np.random.default_rng(0).integers(2, 1025, 100_000)
    began = time.process_time()
    block = pack(length, 1024)
    assert time.process_time() - began < 5
    assert length.sum() / (1024 * (block.max() + 1)) > 0.99
