"""Near-duplicates against comparing every pair."""

from __future__ import annotations

import numpy as np
import pytest
from tests.select.texts import edited, rows, true_jaccard

from coterie.select.duplicates import near_duplicates, planted_recall, shingle_sets
from coterie.select.sketch import bands, shingles, short_values, values
from coterie.select.words import words


def planted(seed: int, rate: float = 0.02) -> list[str]:
    """In the order of preference: 60 documents, edited copies of 20, and copies of the copies."""
    base = [r["text"] for r in rows(60, seed)]
    once = [edited(t, rate, seed + i) for i, t in enumerate(base[:20])]
    twice = [edited(t, rate, 100 + seed + i) for i, t in enumerate(once)]
    return [*base, *once, *twice]


def find(texts: list[str], threshold: float = 0.7, fixed: np.ndarray | None = None):
    value = values(shingles(words(texts)))
    key, short = bands(value), short_values(value)
    return near_duplicates(
        lambda b: key[:, b], lambda rows: short[rows], lambda rows: [texts[r] for r in rows], len(texts), threshold, fixed
    )


@pytest.mark.parametrize("seed", range(4))
def test_what_stays_has_no_pair_and_what_goes_is_like_something_that_stays(seed: int) -> None:
    texts = planted(seed)
    found = find(texts)
    staying = [i for i in range(len(texts)) if i not in found.dropped]
    pairs = [(i, j) for i in staying for j in staying if i < j and true_jaccard(texts[i], texts[j]) >= 0.7]
    assert not pairs
    for row, (like, likeness) in found.dropped.items():
        assert like in staying
        assert like < row, "the better one stays"
        assert likeness == pytest.approx(true_jaccard(texts[like], texts[row]))
        assert likeness >= 0.7
    for like, row, likeness in found.near:
        assert 0.6 <= likeness < 0.7
        assert likeness == pytest.approx(true_jaccard(texts[like], texts[row]))
    assert len(found.dropped) > 10


def test_recall_on_planted_pairs_at_08_is_at_least_09() -> None:
    texts = planted(9, rate=0.022)
    key = bands(values(shingles(words(texts))))
    pairs = [(i, 60 + i) for i in range(20)] + [(60 + i, 80 + i) for i in range(20)]
    near = [(i, j) for i, j in pairs if true_jaccard(texts[i], texts[j]) >= 0.78]
    assert len(near) >= 15
    assert np.mean([(key[i] == key[j]).any() for i, j in near]) >= 0.9


def test_held_out_documents_stay_and_take_training_text_with_them() -> None:
    texts = planted(2)
    order = [*range(60, 80), *range(60), *range(80, 100)]  # copies are held out: they come first
    fixed = np.array([60 <= i < 80 for i in order])
    found = find([texts[i] for i in order], fixed=fixed)
    assert not any(fixed[row] for row in found.dropped)
    assert sum(bool(fixed[like]) for like, _ in found.dropped.values()) > 10


def test_nothing_without_words_is_alike() -> None:
    assert not find(["", "...", "", "one two"]).dropped
    assert not find([]).dropped
    assert list(find(["one two", "One, two!"]).dropped) == [1]


def test_sets_are_read_in_pieces() -> None:
    texts = [r["text"] for r in rows(300)]
    together, alone = shingle_sets(texts), [shingle_sets([t])[0] for t in texts]
    assert all((a == b).all() for a, b in zip(together, alone, strict=True))


def test_the_shown_recall_follows_the_closed_form() -> None:
    table = planted_recall([r["text"] for r in rows(200, 5)], 0)
    assert {entry["jaccard"] for entry in table} >= {0.6, 0.7, 0.8}
    for entry in table:
        if entry["pairs"] >= 40:
            assert abs(entry["recall"] - entry["expected"]) < 0.15
    assert all(entry["recall"] >= 0.9 for entry in table if entry["jaccard"] >= 0.8)
