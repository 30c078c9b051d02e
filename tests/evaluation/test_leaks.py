"""Against a slow obvious reference: sets of tuples of words."""

from __future__ import annotations

import random
import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.evaluation.leaks import SKETCH, Text, find_leaks
from coterie.evaluation.leaks import runs as batches


def text(id_: str, words: str) -> Text:
    return Text(id_, "hash of " + " ".join(words.split()), words)


def runs(words: str) -> np.ndarray:
    return np.concatenate([made.hash_S for made in batches([words])])


def tuples(words: str) -> set[tuple[str, ...]]:
    w = re.findall(r"\w+", words.lower())
    size = min(8, len(w))
    return {tuple(w[i : i + size]) for i in range(len(w) - size + 1)} if w else set()


few_words = st.lists(st.sampled_from("a b c".split()), max_size=30).map(" ".join)


@settings(max_examples=200, deadline=None)
@given(st.lists(few_words, min_size=1, max_size=6), st.lists(few_words, max_size=6))
def test_as_the_reference_finds(evaluated: list[str], trained: list[str]) -> None:
    """Documents of so few words are held whole, so the shares are exact."""
    evaluated = list(dict.fromkeys(evaluated))
    found = find_leaks(
        [text(f"e{i}", d) for i, d in enumerate(evaluated)], [text(f"t{i}", d) for i, d in enumerate(trained)]
    )
    assert [d.text for d in found.exact] == [d for d in evaluated if d in trained]
    seen = set().union(*map(tuples, trained))
    shares = {d: len(tuples(d) & seen) / len(tuples(d)) for d in evaluated if tuples(d) and d not in trained}
    assert {d.text: share for d, share, _ in found.near} == {d: s for d, s in shares.items() if s >= 0.5}
    for d, _, like in found.near:
        first = [next(i for i, t in enumerate(trained) if run in tuples(t)) for run in tuples(d.text) & seen]
        assert first.count(int(like.id[1:])) == max(map(first.count, first))


def test_case_punctuation_and_wrapping_do_not_hide_a_copy() -> None:
    words = "the quick brown fox jumps over the lazy dog and runs far away"
    found = find_leaks([text("e", words.upper().replace(" ", ",\n  "))], [text("t", words)])
    assert [(d.id, share, like.id) for d, share, like in found.near] == [("e", 1.0, "t")]


def test_half_is_enough() -> None:
    found = find_leaks([text("e", "a b c d e f g h i")], [text("t", "a b c d e f g h")])
    assert [share for _, share, _ in found.near] == [0.5]


def test_text_without_spaces_has_runs_too() -> None:
    assert len(runs("天地玄黃宇宙洪荒日月盈昃")) == 5
    assert len(runs("กขคงจฉชซฌญ")) == 3
    assert len(runs("")) == 0


def test_case_does_not_hide_a_copy_in_any_script() -> None:
    words = "съешь же ещё этих мягких французских булок да выпей чаю élan être"
    assert np.isin(runs(words.upper()), runs(words)).all()


@pytest.mark.parametrize("share", [0.2, 0.45, 0.55, 0.9])
def test_a_long_document_is_sampled_fairly(share: float) -> None:
    rng = random.Random(share)
    words = [f"w{rng.randrange(10**9)}" for _ in range(4000)]
    whole = " ".join(words)
    part = " ".join(words[: int(4000 * share)])
    hits = np.isin(np.unique(runs(whole))[:SKETCH], runs(part)).mean()
    assert abs(hits - share) < 0.17  # four standard errors
    assert len(find_leaks([text("e", whole)], [text("t", part)]).near) == (hits >= 0.5)


def test_nothing_to_compare() -> None:
    assert find_leaks([], [text("t", "a b c")]).near == []
    assert find_leaks([text("e", "a b c")], []).exact == []


@pytest.mark.slow
def test_thousands_of_documents_take_seconds() -> None:
    """1,000 documents of 8 kB against 10,000; about ten million words."""
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"w{i:x}" * 2 for i in range(50_000)])

    def documents(name: str, count: int) -> list[Text]:
        return [text(f"{name}{i}", " ".join(vocabulary[rng.zipf(1.3, 1000) % 50_000])) for i in range(count)]

    evaluated, trained = documents("e", 1000), documents("t", 10_000)
    trained += [text("copy", evaluated[7].text + " end"), evaluated[8]]
    started = time.monotonic()
    found = find_leaks(evaluated, trained)
    assert time.monotonic() - started < 60
    assert [d.id for d in found.exact] == ["e8"]
    assert [(d.id, like.id) for d, _, like in found.near] == [("e7", "copy")]


def test_what_all_documents_share_costs_no_more() -> None:
    """A licence text in every document, on both sides."""
    licence = " ".join(f"word{i}" for i in range(400))
    evaluated = [text(f"e{i}", f"{licence} of {i}") for i in range(400)]
    trained = [text(f"t{i}", f"about {i} {licence}") for i in range(2000)]
    started = time.monotonic()
    found = find_leaks(evaluated, trained)
    assert time.monotonic() - started < 20
    assert len(found.near) == 400
    assert {like.id for _, _, like in found.near} == {"t0"}
