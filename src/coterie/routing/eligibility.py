"""Which experts a date may use: one rule, by name.

``strict``: an expert's knowledge ends by the query date, so that it cannot have read what comes after. ``inclusive``: its
window has started, which leaks at most the rest of one window. ``all``: every expert, whatever the date. Dates are
ordinals (days). A query without a date is an error unless the rule is `all` or has a default: whatever it were taken to
mean, something could leak.

Shapes: B rows, U distinct experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import torch
from jaxtyping import Bool
from torch import Tensor

from coterie.errors import RequestError


@dataclass(frozen=True)
class Eligibility:
    """The rule and what it needs to know of each distinct expert."""

    rule: str = "all"
    names: tuple[str, ...] = ()
    starts: tuple[int | None, ...] = ()
    """Ordinal at which each expert's window starts; None: no window."""
    knowledge: tuple[int | None, ...] = ()
    """Ordinal at which each expert's knowledge ends; None: unknown, so `strict` can never use it."""
    fallback: int | None = None
    """Expert that answers dates at which no other is eligible."""
    default: int | None = None
    """Ordinal to assume when no date is given."""

    def __post_init__(self) -> None:
        if self.rule not in ("all", "strict", "inclusive"):
            raise RequestError(f"no rule is called {self.rule!r}", where="eligible", expected="all, strict or inclusive")
        for name, first, i in zip(self.names, self._first, range(len(self.names)), strict=True):
            if first is None and i != self.fallback:
                needs = {"strict": "the date at which its knowledge ends", "inclusive": "a window"}[self.rule]
                raise RequestError(
                    f"eligible: {self.rule} needs {needs} of every expert, and that of {name!r} is unknown",
                    where="eligible",
                    do="date its corpus and its base (base.knowledge_until), make it the fallback, or set eligible: all",
                )

    @property
    def _first(self) -> tuple[int | None, ...]:
        """First date at which each expert may be used."""
        if self.rule == "all":
            return (0,) * len(self.names)
        return self.knowledge if self.rule == "strict" else self.starts

    def mask(self, times: Sequence[int | None], *, none_is_error: bool = True) -> Bool[Tensor, "B U"]:
        """Which experts each row may use.

        Args:
            times: the date of each row as an ordinal, or None for no date.
            none_is_error: if not, a row at whose date no expert is eligible is all False.

        Raises:
            RequestError: no expert is eligible at a date and there is no fallback (names the first usable date); or no date
                is given, and the rule goes by dates and has no default.
        """
        rows: dict[int | None, list[bool]] = {}
        for time in dict.fromkeys(times):
            at = self.default if time is None else time
            if self.rule == "all":
                rows[time] = [True] * len(self.names)
            elif at is None and none_is_error:
                raise RequestError(
                    "this mixture answers as of a date, and none is given",
                    where="time",
                    expected=f"a date, for eligible: {self.rule}",
                    do="give time=, or a default_time in the recipe",
                )
            else:
                rows[time] = [at is not None and first is not None and first <= at for first in self._first]
            if not any(rows[time]):
                if self.fallback is not None:
                    rows[time][self.fallback] = True
                elif none_is_error:
                    raise self._nobody(at)
        return torch.tensor([rows[time] for time in times], dtype=torch.bool).reshape(len(times), len(self.names))

    def _nobody(self, at: int | None) -> RequestError:
        first, name = min((f, n) for f, n in zip(self._first, self.names, strict=True) if f is not None)
        assert at is not None
        return RequestError(
            f"no expert may be used as of {date.fromordinal(at)}",
            where="time",
            expected=f"{date.fromordinal(first)} or later, from when {name!r} may be used (rule: {self.rule})",
            do="ask for a later date, or give the mixture a fallback",
        )
