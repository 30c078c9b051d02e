"""What every mixture has, wherever its experts meet: a name and slots; and how many experts answer at a position."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from coterie.recipe.spec import Count, Name, Positive, Spec


class Policy(Spec):
    top_k: Count | None = None
    """Keep the k experts with the largest weights (equal slots count as one expert); the rest are not mixed in."""
    top_p: Positive | None = None
    """Keep the fewest experts whose weights sum to at least this."""
    temperature: Positive = 1.0
    """Divides the router's logits: below 1 sharper, above 1 flatter."""

    @model_validator(mode="after")
    def _one_selection(self) -> Policy:
        if self.top_k is not None and self.top_p is not None:
            raise ValueError("give either top_k or top_p")
        if self.top_p is not None and self.top_p > 1:
            raise ValueError("top_p is a share of the weight: at most 1")
        return self


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
