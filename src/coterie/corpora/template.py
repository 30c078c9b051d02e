"""How a row's columns become text: a column's name, or a template such as ``"{text}\\n{code}"``.

Types come from what the recipe declares, never from what the data happens to hold: text is a string. A template also takes
whole numbers (`"Problem {task_id}"`), the one kind of value whose spelling is not in doubt.
"""

from __future__ import annotations

import json
import re
from calendar import monthrange
from collections.abc import Mapping
from datetime import date, datetime

_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]+)\}|[{}]|[^{}]+")
_KINDS = {str: "a string", bool: "true or false", int: "a number", float: "a number", list: "an array", dict: "an object"}


class RowError(ValueError):
    """A row that cannot be used; the message is the reason, without the row's text."""


class Template:
    """A parsed column name or template.

    Raises:
        ValueError: a brace without its partner, or a template that names no column.
    """

    def __init__(self, pattern: str) -> None:
        self.parts: list[tuple[bool, str]] = []
        """(is a column, column or literal text)"""
        self.bare = "{" not in pattern and "}" not in pattern
        if self.bare:
            self.parts = [(True, pattern)]
            return
        for match in _TOKEN.finditer(pattern):
            token, column = match[0], match[1]
            if column is not None:
                self.parts.append((True, column))
            elif token in ("{", "}"):
                raise ValueError(f"a single {token!r} in the template: write {token * 2!r} for the character itself")
            else:
                self.parts.append((False, token[0] if token in ("{{", "}}") else token))
        if not self.columns:
            raise ValueError("the template names no column: write one in braces, such as {text}")

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value for is_column, value in self.parts if is_column))

    def render(self, row: Mapping[str, object]) -> str:
        """The text of one row.

        Raises:
            RowError: a column is missing, null or of the wrong type.
        """
        if self.bare:
            return string(row, self.parts[0][1])
        return "".join(string(row, value, numbers=True) if is_column else value for is_column, value in self.parts)


def string(row: Mapping[str, object], column: str, *, numbers: bool = False) -> str:
    """A column that must hold text; with ``numbers`` a whole number will do."""
    value = row.get(column)
    if type(value) is not str:
        if numbers and type(value) is int:
            return str(value)
        raise RowError(f'field "{column}" is {_kind(row, column)} (expected a string)')
    if "\0" in value:
        raise RowError(f'field "{column}" holds a NUL character')
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise RowError(f'field "{column}" holds a lone surrogate, which is no character') from None
    return value


def plain(value: object) -> str | None:
    """How a further column is kept, and what `where:` compares: the value's one plain spelling."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, date | datetime):
        return value.isoformat()
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def wanted(where: Mapping[str, object]) -> dict[str, frozenset[str | None]]:
    """The plain spellings that each column of a `where:` may have."""
    return {
        column: frozenset(map(plain, value)) if isinstance(value, list | tuple) else frozenset({plain(value)})
        for column, value in where.items()
    }


def day(row: Mapping[str, object], column: str) -> date:
    """A column that must hold a date.

    A month or a year stands for its last day: text of "2016" may have been written on any day of it, and an expert must not
    count as knowing less than it does.

    Raises:
        RowError: missing, null, no such day, a time zone, or another spelling.
    """
    value = row.get(column)
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.date()
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    if type(value) is int:
        value = str(value)
    if isinstance(value, str) and (match := re.fullmatch(r"(\d{4})(?:-(\d\d)(?:-(\d\d))?)?", value, re.ASCII)):
        year, month, day_of_month = (int(part) if part else None for part in match.groups())
        try:
            if day_of_month is not None:
                return date(year or 0, month or 0, day_of_month)
            first = date(year or 0, month or 12, 1)
            return first.replace(day=monthrange(first.year, first.month)[1])
        except ValueError:
            pass
    found = repr(str(value)[:40]) if isinstance(value, str | datetime) else _kind(row, column)
    zone = "; with a time of day or a zone it may be another day elsewhere" if re.search(r"\d[T ]\d", found) else ""
    raise RowError(f'field "{column}" is {found} (expected a date: 2016-05-01, 2016-05 or 2016{zone})')


def _kind(row: Mapping[str, object], column: str) -> str:
    if column not in row:
        return "missing"
    value = row[column]
    return "null" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")
