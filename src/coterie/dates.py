"""Dates as people write them, and as days that can be compared."""

from __future__ import annotations

import re
from datetime import date
from numbers import Integral

from coterie.errors import RequestError

Time = str | date | int
"""``2016-05-01``, ``2016-05``, ``2016`` (text or a number: a year), or a date."""


def day(time: Time) -> date:
    """The date that is meant. ``2016`` and ``2016-05`` mean their first day: nothing later can leak.

    Raises:
        RequestError: not a date.
    """
    if isinstance(time, date):
        return date(time.year, time.month, time.day)  # of a datetime, too
    is_year = isinstance(time, Integral) and not isinstance(time, bool)  # numpy's integers are Integral
    text = f"{int(time):04}" if is_year else time
    match = re.fullmatch(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?(?:T.*)?", text.strip()) if isinstance(text, str) else None
    try:
        if match is None:
            raise ValueError
        return date(int(match[1]), int(match[2] or 1), int(match[3] or 1))
    except ValueError:
        raise RequestError(
            "not a date",
            where="time",
            expected="2016-05-01, 2016-05, or a year from 1 to 9999",
            found=repr(time),
            do="days since 0001-01-01 go in as a tensor, or as date.fromordinal(days)" if is_year else None,
        ) from None


def ordinal(time: Time) -> int:
    """Days since 0001-01-01 of `day`."""
    return day(time).toordinal()
