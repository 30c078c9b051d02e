"""The order of training: exact budgets, each block once a pass, shares held all along, equal to a plain reference."""

from __future__ import annotations

import heapq
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.corpora.order import Order, shuffled

blocks = st.lists(st.integers(1, 40), min_size=1, max_size=12).map(np.array)
cases = st.lists(st.tuples(blocks, st.integers(1, 9)), min_size=1, max_size=4)


def slow(sources: list[np.ndarray], weights: list[int], seed: int, budget: int) -> list[tuple[int, int]]:
    """One block after the other: always the one with the least virtual time, in exact fractions."""

    def line(s: int):
        before, turn = 0, 0
        while True:
            for b in shuffled(len(sources[s]), seed, s, turn).tolist():
                size = int(sources[s][b])
                yield Fraction(2 * before + size, 2 * weights[s]), s, b
                before += size
            turn += 1

    order, total = [], 0
    for _, s, b in heapq.merge(*(line(s) for s in range(len(sources)))):
        order.append((s, b))
        total += int(sources[s][b])
        if total >= budget:
            return order
    raise AssertionError


@given(
    st.lists(st.tuples(blocks, st.sampled_from([1, 2, 4, 8])), min_size=1, max_size=4),  # ties are exact in floating point
    st.integers(0, 2**40),
    st.integers(1, 600),
)
def test_equal_to_the_plain_reference(case: list[tuple[np.ndarray, int]], seed: int, budget: int) -> None:
    sources, weights = [s for s, _ in case], [w for _, w in case]
    order = Order(sources, weights, seed, tokens=budget)
    assert list(zip(order.source.tolist(), order.block.tolist(), strict=True)) == slow(sources, weights, seed, budget)


@given(cases, st.integers(0, 99), st.integers(1, 600))
def test_ends_with_the_first_block_that_reaches_the_budget(
    case: list[tuple[np.ndarray, int]], seed: int, budget: int
) -> None:
    sources = [s for s, _ in case]
    order = Order(sources, [w for _, w in case], seed, tokens=budget)
    tokens = [int(sources[s][b]) for s, b in zip(order.source, order.block, strict=True)]
    assert sum(tokens) == order.tokens >= budget > sum(tokens[:-1])
    assert len(order) == len(tokens)


@given(cases, st.integers(0, 99), st.integers(1, 3))
def test_whole_epochs_show_every_block_as_often(case: list[tuple[np.ndarray, int]], seed: int, epochs: int) -> None:
    sources = [s for s, _ in case]
    order = Order(sources, None, seed, epochs=epochs)
    assert order.tokens == epochs * sum(int(s.sum()) for s in sources)
    for number, source in enumerate(sources):
        counts = np.bincount(order.block[order.source == number], minlength=len(source))
        assert (counts == epochs).all()


@given(cases, st.integers(0, 99), st.integers(50, 2000))
def test_each_pass_of_a_source_shows_each_block_once(case: list[tuple[np.ndarray, int]], seed: int, budget: int) -> None:
    sources = [s for s, _ in case]
    order = Order(sources, [w for _, w in case], seed, tokens=budget)
    for number, source in enumerate(sources):
        mine = order.block[order.source == number]
        for begin in range(0, len(mine), len(source)):
            turn = mine[begin : begin + len(source)]
            assert len(set(turn.tolist())) == len(turn)


@given(cases, st.integers(0, 99))
def test_every_source_keeps_its_share_to_within_its_largest_blocks(case: list[tuple[np.ndarray, int]], seed: int) -> None:
    sources, weights = [s for s, _ in case], np.array([w for _, w in case], dtype=float)
    order = Order(sources, weights.tolist(), seed, tokens=3000)
    tokens = np.zeros((len(order), len(sources)))
    for i, (s, b) in enumerate(zip(order.source, order.block, strict=True)):
        tokens[i, s] = sources[s][b]
    seen = tokens.cumsum(axis=0)
    wanted = seen.sum(axis=1, keepdims=True) * weights / weights.sum()
    assert np.abs(seen - wanted).max() <= sum(int(s.max()) for s in sources)


def test_a_part_of_an_epoch_is_a_part_of_the_tokens() -> None:
    sizes = np.full(1000, 10)
    assert Order([sizes], None, 0, epochs=0.25).tokens == 2500
    assert Order([sizes], None, 0, epochs=2.5).tokens == 25_000


def test_seeds_sources_and_passes_shuffle_differently_and_a_shorter_run_is_a_prefix() -> None:
    sizes = np.arange(1, 101)
    one, other = Order([sizes], None, 0, epochs=2), Order([sizes], None, 1, epochs=2)
    assert one.block.tolist() != other.block.tolist()
    assert one.block[:100].tolist() != one.block[100:].tolist()
    two = Order([sizes, sizes], None, 0, epochs=1)
    assert two.block[two.source == 0].tolist() != two.block[two.source == 1].tolist()
    short = Order([sizes, sizes], [1, 2], 3, tokens=500)
    long = Order([sizes, sizes], [1, 2], 3, tokens=5000)
    assert long.block[: len(short)].tolist() == short.block.tolist()


def test_the_shuffle_is_the_same_for_ever() -> None:
    assert shuffled(8, 0, 0, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
    assert shuffled(8, -1, 0, 0).tolist() == shuffled(8, 2**64 - 1, 0, 0).tolist()


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"tokens": 5, "epochs": 1.0}, {}])
def test_the_caller_gives_one_budget(wrong: dict) -> None:
    with pytest.raises(AssertionError):
        Order([np.array([3])], None, 0, **wrong)
