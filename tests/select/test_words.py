"""Words, measures and sketches against slow and obvious ones."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.select.texts import edited, grams, rows, true_jaccard

from coterie.select import words as module
from coterie.select.contamination import Runs
from coterie.select.measures import measure, terms
from coterie.select.sketch import bands, chance, jaccard, shingles, short_values, values
from coterie.select.words import batches, words

texts = st.lists(st.text(st.sampled_from("ab Z9_.!?,\n'-éß’“東京カ。\u00a0e"), max_size=40), max_size=8)


def slow_words(text: str) -> list[str]:
    """Runs of word characters; each Chinese, Japanese or Korean character is one."""
    out = re.findall(r"[\u3000-\uffff]|[^\W\u3000-\uffff]+", text)
    return [w.translate({c: c + 32 for c in range(65, 91)}) for w in out if re.fullmatch(r"\w+", w)]


@given(texts)
def test_words_are_those_of_a_regular_expression(given_texts: list[str]) -> None:
    found = words(given_texts)
    spelled = [found.spelled(w) for w in range(len(found.hash_W))]
    for d, text in enumerate(given_texts):
        assert spelled[found.first_D1[d] : found.first_D1[d + 1]] == slow_words(text)


@given(texts)
def test_equal_words_and_only_they_have_equal_hashes(given_texts: list[str]) -> None:
    found = words(given_texts)
    spelled = [found.spelled(w) for w in range(len(found.hash_W))]
    assert len(set(spelled)) == len(set(found.hash_W.tolist()))
    assert len(set(zip(spelled, found.hash_W.tolist(), strict=True))) == len(set(spelled))


@given(texts)
def test_a_document_does_not_know_its_neighbours(given_texts: list[str]) -> None:
    """What is measured of a text alone and in any batch is bitwise the same: shards merge exactly."""
    together = words(given_texts)
    made = shingles(together)
    key, columns = bands(values(made)), measure(given_texts, together, made)
    for d, text in enumerate(given_texts):
        alone = words([text])
        own = shingles(alone)
        assert (bands(values(own))[0] == key[d]).all()
        for name, column in measure([text], alone, own).items():
            assert column[0] == columns[name][d], name


def test_the_measures_are_those_of_a_slow_way() -> None:
    given_texts = [r["text"] for r in rows(60)] + ["One. Two! Three?", "", "naïve café 東京", "x", "a a a a a a a a a a"]
    found = words(given_texts)
    columns = measure(given_texts, found, shingles(found))
    for d, text in enumerate(given_texts):
        said = slow_words(text)
        syllables = 0
        for w in said:
            n = len(re.findall(r"[aeiouy]+", w))
            n -= bool(re.search(r"[^aeiouy]e$", w)) and n > 1
            syllables += max(n, 1)
        sentences = max(len(re.findall(r"[.!?](?=[\s\"')]|$)", text)), 1)
        assert columns["words"][d] == len(said)
        assert columns["chars"][d] == len(text)
        if said:
            ease = 206.835 - 1.015 * len(said) / sentences - 84.6 * syllables / len(said)
            assert columns["flesch"][d] == pytest.approx(ease, rel=1e-5)
            runs = [tuple(said[i : i + 5]) for i in range(max(1, len(said) - 4))]
            assert columns["repetition"][d] == pytest.approx(1 - len(set(runs)) / len(runs), abs=1e-6)
        if len(said) > 1:
            assert columns["richness"][d] == pytest.approx(math.log(len(set(said))) / math.log(len(said)), rel=1e-5)
        assert 0 <= columns["quality"][d] <= 1
    assert columns["complete"][-5]
    assert not columns["complete"][-2]


def test_terms_count_words() -> None:
    size, bucket, count = terms(words(["cat Cat dog a 12", "", "dog"]))
    assert size.tolist() == [2, 0, 1]
    assert sorted(count.tolist()) == [1, 1, 2]
    assert bucket[2] in bucket[:2]


@given(texts)
def test_batches_leave_nothing_out(given_texts: list[str]) -> None:
    made = list(batches(given_texts, 30))
    assert [t for b in made for t in b] == given_texts
    assert all(len(b) == 1 or sum(map(len, b)) <= 30 for b in made)


def test_a_huge_document_is_measured_by_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST", 1000)
    monkeypatch.setattr("coterie.select.measures.LONGEST", 1000)
    text = "word " * 1000
    found = words([text])
    columns = measure([text], found, shingles(found))
    assert len(found.hash_W) == 200
    assert columns["chars"][0] == 5000
    assert columns["words"][0] == 1000
    assert columns["tokens"][0] == pytest.approx(5000 * 0.1334 + 1000 * 0.3344, rel=0.01)


def test_jaccard_is_that_of_python_sets() -> None:
    base = [r["text"] for r in rows(40)]
    other = [edited(t, 0.01 * i, i) for i, t in enumerate(base)]
    made = shingles(words([*base, *other]))
    sets = [np.unique(made.hash_S[a:b]) for a, b in zip(made.first_D1[:-1], made.first_D1[1:], strict=True)]
    for i in range(40):
        assert jaccard(sets[i], sets[40 + i]) == pytest.approx(true_jaccard(base[i], other[i]))
        assert len(sets[i]) == len(grams(base[i]))


@pytest.mark.parametrize("sentences", [2, 6, 40], ids=["short", "middle", "long"])
def test_pairs_meet_as_often_as_the_closed_form_says(sentences: int) -> None:
    """Also in short documents, whose empty bins borrow."""
    long = [r["text"] for r in rows(400 * sentences // 6, seed=3)]
    base = [" ".join(long[i : i + max(1, sentences // 6)]).split(" ") for i in range(0, len(long), max(1, sentences // 6))]
    cut = [" ".join(b[: 9 * sentences]) for b in base][:400]
    other = [edited(t, 0.03, i) for i, t in enumerate(cut)]
    made = shingles(words([*cut, *other]))
    key = bands(values(made))
    sets = [np.unique(made.hash_S[a:b]) for a, b in zip(made.first_D1[:-1], made.first_D1[1:], strict=True)]
    n = len(cut)
    likeness = np.array([jaccard(sets[i], sets[n + i]) for i in range(n)])
    met = np.array([(key[i] == key[n + i]).any() for i in range(n)])
    use = likeness > 0.35
    assert use.sum() > 50
    expected = chance(likeness[use])
    spread = 4 * math.sqrt(float((expected * (1 - expected)).sum())) / use.sum()
    assert abs(met[use].mean() - expected.mean()) < spread + 0.06
    near = (likeness >= 0.78) & (likeness <= 0.9)
    if near.sum() > 20:
        assert met[near].mean() >= 0.9
    short = short_values(values(made))
    estimate = (short[:n] == short[n:]).mean(1)
    assert np.abs(estimate - likeness)[use].mean() < 0.05
    assert (np.abs(estimate - likeness) < 0.25).all()
    strangers = np.mean([(key[i] == key[n + (i + 7) % n]).any() for i in range(n)])
    assert strangers < 0.01


def test_runs_that_occur_in_evaluation_texts_are_found() -> None:
    made = np.unique(shingles(words(["one two three four five six"]), 3).hash_S)
    shared = Runs(made, 3).share(words(["zero one two three nine", "nothing here at all", "two three four five", ""]))
    assert shared.tolist() == pytest.approx([1 / 3, 0, 1, 0])
