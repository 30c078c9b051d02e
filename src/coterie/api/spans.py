"""Windows as they are given in Python: first day, and first day after, as years, months or dates."""

from __future__ import annotations

from dataclasses import replace

from pydantic import ValidationError

from coterie.corpora.windows import Window
from coterie.dates import day
from coterie.errors import RequestError
from coterie.mixtures.mixture import Span
from coterie.mixtures.seats import Seat
from coterie.recipe.read_recipe import readable


def window(span: Span) -> Window:
    """``("2013", "2015")`` is all of 2013 and 2014.

    Raises:
        RequestError: not two dates, or nothing between them.
    """
    if isinstance(span, str) or len(span) != 2:
        raise RequestError("a window is its first day and the first day after it", where="window", found=repr(span))
    try:
        return Window(start=day(span[0]), end=day(span[1]))
    except ValidationError as error:
        raise readable(error) from None


def dated(seat: Seat, span: Span | None) -> Seat:
    """An expert that has read what lies in a window, and nothing later."""
    if span is None:
        return seat
    found = window(span)
    return replace(seat, window=found, knowledge=found.end)
