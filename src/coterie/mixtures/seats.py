"""Who sits in a mixture: distinct experts with their slots, and the rule by which dates may use them.

Slots of one expert are one seat with several names, so that disk, memory and compute follow experts, not slots.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, NotRequired, TypedDict

from coterie.corpora.windows import Window
from coterie.progress import say
from coterie.store import Artifact

if TYPE_CHECKING:
    from coterie.routing.eligibility import Eligibility


@dataclass(frozen=True)
class Seat:
    """One distinct expert of a mixture."""

    name: str
    """The first name it goes by."""
    artifact: Artifact
    slots: tuple[str, ...] = ()
    """Names of its slots, in order; one slot under its own name if none are given."""
    base: Artifact | None = None
    """What a LoRA adapter rests on."""
    window: Window | None = None
    knowledge: date | None = None
    """First day after all text behind it; None: unknown."""
    targets: object = None
    """What says which linears an adapter updates, as JSON."""

    def __post_init__(self) -> None:
        if not self.slots:
            object.__setattr__(self, "slots", (self.name,))

    @property
    def dates(self) -> dict[str, str | None]:
        """The dates that rules go by, as JSON."""
        start, end = (self.window.start, self.window.end) if self.window else (None, None)
        days = {"start": start, "end": end, "knowledge": self.knowledge}
        return {key: day.isoformat() if day else None for key, day in days.items()}

    @property
    def vocab_size(self) -> int:
        """Rows of the output embedding."""
        return json.loads((self.base or self.artifact).file("config.json").read_text())["vocab_size"]


class Rule(TypedDict):
    """A rule of eligibility as JSON, the form in which it is hashed and stored."""

    rule: str
    fallback: NotRequired[int | None]
    """Number of the expert that answers where no other may."""
    default_time: NotRequired[str | None]


class Eligible(TypedDict):
    """A rule and the dates that it goes by, of each seat."""

    rule: Rule
    dates: list[dict[str, str | None]]


def seated(
    slots: Sequence[str], artifacts: Mapping[str, Artifact], seat: Callable[[str, tuple[str, ...]], Seat]
) -> list[Seat]:
    """The distinct experts of some slots, in order of first use: equal ones share a seat.

    Args:
        artifacts: of each expert, by name.
        seat: makes a seat of an expert's name and its slots.
    """
    by_digest: dict[str, list[str]] = {}
    for slot in slots:
        by_digest.setdefault(artifacts[slot].digest, []).append(slot)
    return [seat(names[0], tuple(names)) for names in by_digest.values()]


def say_shared(label: str, seats: Sequence[Seat], consequence: str) -> None:
    """Tell people where experts have several slots."""
    if shared := [f"{seat.name!r} ({len(seat.slots)} slots)" for seat in seats if len(seat.slots) > 1]:
        say(f"  {label}: slots of one expert cannot be told apart and {consequence}: {', '.join(shared)}")


def slot_order(slots: Sequence[str], seats: Sequence[Seat]) -> list[int]:
    """For each slot, the seat that it is of."""
    place = {name: u for u, seat in enumerate(seats) for name in seat.slots}
    return [place[name] for name in slots]


def eligibility(rule: Rule, names: Sequence[str], dates: Sequence[Mapping[str, str | None]]) -> Eligibility:
    """The rule in force.

    Raises:
        RequestError: the rule needs a date that an expert does not have.
    """

    from coterie.routing.eligibility import Eligibility

    def days(key: str) -> tuple[int | None, ...]:
        return tuple(date.fromisoformat(day).toordinal() if (day := d.get(key)) else None for d in dates)

    default = rule.get("default_time")
    return Eligibility(
        rule=rule["rule"],
        names=tuple(names),
        starts=days("start"),
        knowledge=days("knowledge"),
        fallback=rule.get("fallback"),
        default=date.fromisoformat(default).toordinal() if default else None,
    )
