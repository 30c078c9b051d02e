"""Who sits in a mixture: distinct experts with their slots, and the rule by which dates may use them.

Slots of one expert are one member with several names, so that disk, memory and compute follow experts, not slots.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

from coterie.corpora.windows import Window
from coterie.mixtures.outputs.outputs_place import OutputsSpec
from coterie.store import Artifact

if TYPE_CHECKING:
    from coterie.routing.eligibility import Eligibility


@dataclass
class Member:
    """One distinct expert of a mixture."""

    name: str
    """The first name it goes by."""
    artifact: Artifact
    base: Artifact | None = None
    """What a LoRA adapter sits on."""
    window: Window | None = None
    knowledge: date | None = None
    """First day after all text behind it; None: unknown."""
    slots: list[str] = field(default_factory=list)
    """Names of its slots, in order; one slot under its own name if not said."""

    def __post_init__(self) -> None:
        self.slots = self.slots or [self.name]

    @property
    def dates(self) -> dict[str, str | None]:
        """The dates that rules go by, as JSON."""
        return {
            "start": self.window.start.isoformat() if self.window else None,
            "end": self.window.end.isoformat() if self.window else None,
            "knowledge": self.knowledge.isoformat() if self.knowledge else None,
        }

    @property
    def vocab_size(self) -> int:
        """Rows of the output embedding."""
        return json.loads((self.base or self.artifact).file("config.json").read_text())["vocab_size"]


def slot_order(mixture: OutputsSpec, members: Sequence[Member]) -> list[int]:
    """For each slot of the recipe, the member that sits there."""
    seat = {name: i for i, member in enumerate(members) for name in member.slots}
    return [seat[name] for name in mixture.slots]


def rule(mixture: OutputsSpec, members: Sequence[Member]) -> dict:
    """The eligibility rule as JSON, the form in which it is hashed and stored."""
    fallback = next((i for i, m in enumerate(members) if mixture.fallback in m.slots), None)
    return {
        "rule": mixture.eligible or "all",
        "fallback": fallback,
        "default_time": mixture.default_time.isoformat() if mixture.default_time else None,
    }


def eligibility(rule: dict, names: Sequence[str], dates: Sequence[dict[str, str | None]]) -> Eligibility:
    """The rule in force.

    Raises:
        RequestError: the rule needs a date that an expert does not have.
    """

    from coterie.routing.eligibility import Eligibility

    def days(key: str) -> tuple[int | None, ...]:
        return tuple(date.fromisoformat(d[key]).toordinal() if d.get(key) else None for d in dates)  # type: ignore[arg-type]

    default = rule.get("default_time")
    return Eligibility(
        rule=rule["rule"],
        names=tuple(names),
        starts=days("start"),
        knowledge=days("knowledge"),
        fallback=rule.get("fallback"),
        default=date.fromisoformat(default).toordinal() if default else None,
    )
