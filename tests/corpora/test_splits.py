"""Splits: no content in two of them, whatever the duplicates and groups; limits."""

from __future__ import annotations

import hashlib
from collections import defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coterie.corpora.corpus_settings import Limit, Split
from coterie.corpora.splits import SPLITS, assign, content_hash, order_of, split_tokens, within
from coterie.select.select_settings import Corpus

few = st.integers(0, 12)


def hashes(numbers: list[int]) -> list[bytes]:
    return [hashlib.sha256(str(n).encode()).digest() for n in numbers]


@given(
    st.lists(st.tuples(few, st.one_of(st.none(), few)), min_size=1, max_size=60), st.floats(0.1, 0.4), st.floats(0.1, 0.4)
)
def test_no_content_and_no_group_in_two_splits(rows: list[tuple[int, int | None]], valid: float, test: float) -> None:
    content = hashes([c for c, _ in rows])
    groups = [None if g is None else f"group {g}" for _, g in rows]
    split = assign(content, groups, Split(valid=valid, test=test, group="g"))
    by_content, by_group = defaultdict(set), defaultdict(set)
    for c, g, s in zip(content, groups, split, strict=True):
        by_content[c].add(s)
        if g is not None:
            by_group[g].add(s)
    assert all(len(where) == 1 for where in [*by_content.values(), *by_group.values()])


@given(st.lists(st.tuples(few, few), min_size=2, max_size=40), st.randoms())
def test_the_order_of_rows_does_not_matter(rows: list[tuple[int, int]], random) -> None:
    shuffled = random.sample(rows, len(rows))
    split = Split(valid=0.3, test=0.3, group="g")
    found = [
        dict(zip(some, assign(hashes([c for c, _ in some]), [str(g) for _, g in some], split).tolist(), strict=True))
        for some in (rows, shuffled)
    ]
    assert found[0] == found[1]


def test_without_groups_equal_content_falls_into_one_split_in_every_corpus() -> None:
    first, second = hashes(list(range(500))), hashes(list(range(250, 750)))
    split = Split(valid=0.2, test=0.2)
    one, other = assign(first, None, split), assign(second, None, split)
    assert (one[250:] == other[:250]).all()


def test_groups_that_share_nothing_are_split_by_their_names_alone() -> None:
    groups = [f"g{i % 40}" for i in range(400)]
    split = Split(valid=0.2, test=0.2, group="g")
    one = assign(hashes(list(range(400))), groups, split)
    other = assign(hashes(list(range(400, 800))), groups, split)
    assert (one == other).all()


def test_shares_are_met_on_average() -> None:
    split = assign(hashes(list(range(20_000))), None, Split(valid=0.1, test=0.25))
    share = np.bincount(split, minlength=3) / len(split)
    assert np.abs(share - [0.65, 0.1, 0.25]).max() < 0.01
    assert (assign(hashes(list(range(100))), None, Split(valid=0, test=0)) == 0).all()


def test_the_order_says_nothing_about_the_split() -> None:
    content = hashes(list(range(5000)))
    split = assign(content, None, Split(valid=0.2, test=0.2))
    first = split[np.argsort([order_of(c) for c in content])][:1000]
    assert np.abs(np.bincount(first, minlength=3) / 1000 - [0.6, 0.2, 0.2]).max() < 0.06


def test_white_space_and_composition_make_no_other_document() -> None:
    assert content_hash(None, "caf\u00e9  au\nlait ") == content_hash(None, "cafe\u0301 au lait")
    assert content_hash("caf\u00e9", "au lait") == content_hash(None, "caf\u00e9 au lait")
    assert content_hash(None, "Caf\u00e9 au lait") != content_hash(None, "caf\u00e9 au lait")


@given(st.lists(st.integers(0, 2), min_size=1, max_size=80), st.integers(1, 100), st.integers(0, 2**32))
def test_a_limit_takes_the_first_of_each_split_and_exactly_so_many(split: list[int], rows: int, seed: int) -> None:
    order = np.random.default_rng(seed).integers(0, 2**63, len(split)).astype(np.uint64)
    split_D = np.array(split, dtype=np.uint8)
    keep = within(order, split_D, Limit(rows=rows))
    assert keep.sum() == min(rows, len(split))
    for number in range(3):
        here = split_D == number
        kept = int((keep & here).sum())
        assert set(order[keep & here]) == set(np.sort(order[here])[:kept])
        assert abs(kept - here.sum() * keep.sum() / len(split)) <= 2
        if here.any() and rows >= len(set(split)):
            assert kept >= 1
    share = within(order, split_D, Limit(share=0.3))
    for number in range(3):
        assert (share & (split_D == number)).sum() == np.ceil(0.3 * (split_D == number).sum())


def test_a_small_limit_leaves_no_split_empty() -> None:
    split = np.array([0] * 197 + [1] * 2 + [2], dtype=np.uint8)
    order = np.random.default_rng(0).permutation(200).astype(np.uint64)
    assert np.bincount(split[within(order, split, Limit(rows=10))]).tolist() == [8, 1, 1]
    assert within(order, split, Limit(rows=2)).sum() == 2


def test_a_token_limit_is_divided_among_the_splits() -> None:
    corpus = Corpus.model_validate({"path": "x", "limit": {"tokens": 1000}, "split": {"valid": 0.1, "test": 0.2}})
    assert [split_tokens(corpus, split) for split in SPLITS] == [700, 100, 200]
    assert split_tokens(corpus.model_copy(update={"limit": Limit(rows=3)}), "train") is None
