"""Windows of time: half-open dates, alone or in a row."""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import Annotated

from pydantic import AfterValidator, model_validator

from coterie.spec.settings import Spec


class Window(Spec):
    """Half-open dates: `start` belongs to the window, `end` does not."""

    start: date
    """First day."""
    end: date
    """First day after the window."""

    @model_validator(mode="after")
    def _not_empty(self) -> Window:
        if self.end <= self.start:
            raise ValueError(f"window [{self.start}, {self.end}) is empty")
        return self


def _every(value: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]*[ymd]", value):
        raise ValueError(f"{value!r}: write a number and y, m or d, such as 2y or 6m")
    return value


class Windows(Spec):
    """A row of windows, one expert for each."""

    start: date
    """Start of the first window."""
    end: date
    """End of the last window."""
    every: Annotated[str, AfterValidator(_every)]
    """Length of a window: `2y`, `6m`, `90d`."""

    def spans(self) -> list[Window]:
        """The windows, in order; the last one may be shorter."""
        found: list[Window] = []
        begin = self.start
        while begin < self.end:
            end = self._after(begin, len(found) + 1)
            found.append(Window(start=begin, end=min(end, self.end)))
            begin = end
        return found

    def _after(self, begin: date, steps: int) -> date:
        count, unit = int(self.every[:-1]), self.every[-1]
        if unit == "d":
            return begin + timedelta(days=count)
        months = self.start.month - 1 + count * steps * (12 if unit == "y" else 1)
        year, month = self.start.year + months // 12, months % 12 + 1
        last = (date(year + month // 12, month % 12 + 1, 1) - timedelta(days=1)).day
        return date(year, month, min(self.start.day, last))
