"""What every mixture has, wherever its experts meet: a name and slots; and how many experts answer at a position."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from coterie.spec.settings import Name, Spec


class Seats(Spec):
    """A named mixture with slots over experts."""

    name: Name
    """Name in this recipe."""
    slots: tuple[str, ...] = ()
    """Experts by name or glob, one slot each, repeats allowed; also `{NAME: COUNT}`."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        value = dict(value)
        if isinstance(value.get("router"), str):
            value["router"] = {"kind": value["router"]}
        slots = value.get("slots")
        if isinstance(slots, str):
            value["slots"] = [slots]
        elif isinstance(slots, dict):
            if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in slots.values()):
                raise ValueError("slots: counts must be whole numbers from 1")
            value["slots"] = [name for name, n in slots.items() for _ in range(n)]
        return value

    @property
    def needs_date(self) -> bool:
        """Whether every question must come with a date."""
        return False
