"""Templates and the strict reading of single values."""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.corpora.template import RowError, Template, day, plain, wanted

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
column = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}"), min_size=1)


@given(st.lists(st.tuples(text, column, text), min_size=1))
def test_literals_and_columns_come_out_as_written(parts: list[tuple[str, str, str]]) -> None:
    row = {name: value for _, name, value in parts}
    pattern = "".join(before.replace("{", "{{").replace("}", "}}") + "{" + name + "}" for before, name, _ in parts)
    assert Template(pattern).render(row) == "".join(before + row[name] for before, name, _ in parts)


@given(column, text)
def test_a_bare_word_is_a_column(name: str, value: str) -> None:
    assert Template(name).render({name: value}) == value
    assert Template(name).columns == (name,)


@pytest.mark.parametrize("pattern", ["{", "}", "a{b", "{a}}", "{}", "{{a}}"])
def test_what_cannot_be_meant_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError):
        Template(pattern)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, 'field "a" is null (expected a string)'),
        (3, 'field "a" is a number (expected a string)'),
        (True, 'field "a" is true or false (expected a string)'),
        (["x"], 'field "a" is an array (expected a string)'),
        ({}, 'field "a" is an object (expected a string)'),
        ("a\0b", 'field "a" holds a NUL character'),
        ("a\ud800b", 'field "a" holds a lone surrogate, which is no character'),
    ],
)
def test_text_is_a_string(value: object, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        Template("a").render({"a": value})
    assert str(caught.value) == reason


def test_a_missing_field_is_not_a_null_one() -> None:
    with pytest.raises(RowError, match='field "a" is missing'):
        Template("x {a}").render({})


def test_templates_take_whole_numbers_and_no_others() -> None:
    assert Template("Problem {n}").render({"n": -12}) == "Problem -12"
    for value in (1.0, True, [1]):
        with pytest.raises(RowError):
            Template("Problem {n}").render({"n": value})


@given(st.dates(date(1000, 1, 1)))
def test_a_day_is_that_day_and_a_month_or_year_its_last(when: date) -> None:
    assert day({"t": f"{when:%Y-%m-%d}"}, "t") == day({"t": when}, "t") == when
    assert day({"t": datetime(when.year, when.month, when.day, 12)}, "t") == when
    assert day({"t": f"{when:%Y-%m}"}, "t") == when.replace(day=monthrange(when.year, when.month)[1])
    assert day({"t": f"{when.year}"}, "t") == day({"t": when.year}, "t") == date(when.year, 12, 31)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "16-05-01",
        "2016-5-1",
        "2016-02-30",
        "2016-13",
        "2016/05/01",
        " 2016",
        "2016-05-01T00:00",
        "２０１６",
        "0000",
        20160501,
        2016.0,
        True,
        None,
        [2016],
        datetime(2016, 5, 1, tzinfo=UTC),
    ],
)
def test_no_other_spelling_is_a_date(value: object) -> None:
    with pytest.raises(RowError):
        day({"t": value}, "t")


def test_values_have_one_plain_spelling() -> None:
    assert [plain(v) for v in (None, "a", 1, 1.0, True, 0.5, date(2016, 5, 1), ["a", 1])] == [
        None,
        "a",
        "1",
        "1",
        "true",
        "0.5",
        "2016-05-01",
        '["a", 1]',
    ]
    assert wanted({"a": 1, "b": ["x", True]}) == {"a": {"1"}, "b": {"x", "true"}}
