"""The rule of eligibility, as a table and as a property."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coterie.dates import ordinal
from coterie.errors import RequestError
from coterie.mixtures.query import ordinals
from coterie.routing.eligibility import Eligibility


def biennial(rule: str, **more: int | None) -> Eligibility:
    """Six experts, windows of two years from 2013."""
    years = range(2013, 2025, 2)
    return Eligibility(
        rule,
        tuple(f"y{y}" for y in years),
        tuple(date(y, 1, 1).toordinal() for y in years),
        tuple(date(y + 2, 1, 1).toordinal() for y in years),
        **more,
    )


@pytest.mark.parametrize(
    ("time", "strict", "inclusive"),
    [
        ("2013-01-01", None, 1),
        ("2013", None, 1),
        ("2014-12-31", None, 1),
        ("2015-01-01", 1, 2),
        ("2015-06", 1, 2),
        ("2016-12-31", 1, 2),
        ("2017-01-01", 2, 3),
        ("2019", 3, 4),
        ("2021", 4, 5),
        ("2023", 5, 6),
        ("2024-12-31", 5, 6),
        ("2025-01-01", 6, 6),
        ("2030", 6, 6),
        ("2012-12-31", None, None),
    ],
)
def test_table(time: str, strict: int | None, inclusive: int | None) -> None:
    """How many of the six, oldest first, may answer."""
    for rule, number in (("strict", strict), ("inclusive", inclusive)):
        if number is None:
            with pytest.raises(RequestError, match="no expert may be used as of"):
                biennial(rule).mask([ordinal(time)])
        else:
            assert biennial(rule).mask([ordinal(time)]).tolist() == [[True] * number + [False] * (6 - number)]
    assert biennial("all").mask([ordinal(time)]).all()


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 20)), min_size=1, max_size=6), st.integers(1, 80))
def test_strict_never_knows_more_than_the_date(windows: list[tuple[int, int]], at: int) -> None:
    starts, ends = tuple(s for s, _ in windows), tuple(s + n for s, n in windows)
    names = tuple(f"e{i}" for i in range(len(windows)))
    for rule, firsts in (("strict", ends), ("inclusive", starts)):
        allowed = Eligibility(rule, names, starts, ends).mask([at], none_is_error=False)[0].tolist()
        assert allowed == [first <= at for first in firsts]


def test_error_names_the_date_and_the_first_usable_one() -> None:
    with pytest.raises(RequestError) as error:
        biennial("strict").mask([ordinal("2014-05-06")])
    assert "2014-05-06" in str(error.value)
    assert "2015-01-01" in str(error.value)
    assert "y2013" in str(error.value)


def test_fallback_answers_only_where_nobody_else_does() -> None:
    mask = biennial("strict", fallback=5).mask([ordinal("2013"), ordinal("2015")])
    assert mask.tolist() == [[False] * 5 + [True], [True] + [False] * 5]


def test_no_date_is_an_error_unless_a_default_is_set() -> None:
    with pytest.raises(RequestError, match="none is given"):
        biennial("strict").mask([None])
    assert not biennial("strict").mask([None], none_is_error=False).any()
    assert biennial("all").mask([None]).all()
    assert biennial("strict", default=ordinal("2015")).mask([None]).tolist() == [[True] + [False] * 5]


def test_unknown_knowledge_makes_strict_impossible() -> None:
    with pytest.raises(RequestError, match="that of 'b' is unknown"):
        Eligibility("strict", ("a", "b"), (None, None), (5, None))
    with pytest.raises(RequestError, match="needs a window"):
        Eligibility("inclusive", ("a", "b"), (3, None), (5, 5))
    fine = Eligibility("strict", ("a", "b"), (None, None), (5, None), fallback=1)
    assert fine.mask([4, 5]).tolist() == [[False, True], [True, False]]


@pytest.mark.parametrize(
    "time",
    ["yesterday", "2016-13-01", "2016-02-30", "16-01-01", "", "2016/01/01", 0, -5, 10_000, 20160501, True, 2016.0, [2016]],
)
def test_what_is_no_date(time: Any) -> None:
    with pytest.raises(RequestError, match="not a date"):
        ordinal(time)


def test_dates() -> None:
    assert ordinal("2016") == ordinal("2016-01") == ordinal("2016-01-01") == ordinal(date(2016, 1, 1))
    assert ordinal("2016-05-01T12:00:00Z") == ordinal("2016-05-01") == ordinal(datetime(2016, 5, 1, 12))


@pytest.mark.parametrize("year", [2016, np.int64(2016), np.int16(2016), "2016"])
def test_a_number_is_a_year_as_its_text_is(year: Any) -> None:
    first = date(2016, 1, 1).toordinal()
    assert ordinal(year) == first
    assert ordinals(year, 2) == ordinals([year, year], 2) == ordinals(torch.tensor([first, first]), 2) == [first, first]


def test_a_year_that_is_none_is_refused_with_the_remedy() -> None:
    with pytest.raises(RequestError, match="not a date") as caught:
        ordinal(736_330)
    assert "1 to 9999" in (caught.value.expected or "")
    assert "tensor" in (caught.value.do or "")
