"""Dates as people write them, and as days that can be compared."""

from __future__ import annotations

import re
from datetime import date

from coterie.errors import RequestError

Time = str | date | int


def ordinal(time: Time) -> int:
    """Days since 0001-01-01. ``2016`` and ``2016-05`` mean their first day: nothing later can leak.

    Raises:
        RequestError: not a date.
    """
    if isinstance(time, date):
        return time.toordinal()
    if isinstance(time, int):
        return time
    match = re.fullmatch(r"(\d{4})(?:-(\d\d))?(?:-(\d\d))?(?:T.*)?", time.strip())
    try:
        if match is None:
            raise ValueError
        return date(int(match[1]), int(match[2] or 1), int(match[3] or 1)).toordinal()
    except ValueError:
        raise RequestError("not a date", where="time", expected="2016-05-01, 2016-05 or 2016", found=repr(time)) from None
