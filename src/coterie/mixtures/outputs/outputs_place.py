"""Mixtures at the outputs: routers on the experts' probabilities, and the dates that may use each expert."""

from __future__ import annotations

from datetime import date
from typing import Literal

from pydantic import model_validator

from coterie.experts.train_settings import Train
from coterie.mixtures.place import Seats
from coterie.routing.output_routers import Router, Uniform
from coterie.spec.settings import Positive


class Adapt(Train):
    """Co-adaptation: the router and the expert of each document's own slice go on learning together."""

    start: str
    """Mixture of the same slots to start from. Its router must be of the same kind, or uniform."""
    learning_rate: Positive = 1e-4
    """Peak learning rate, of the router and of the experts."""

    @model_validator(mode="after")
    def _settings_apply(self) -> Adapt:
        self.refuse("adapt", "snapshots", "gradient_checkpointing")
        return self


class OutputsSpec(Seats):
    """Slots over experts whose probabilities a router mixes."""

    at: Literal["outputs"]
    """Where experts meet: `outputs` mixes their probabilities."""
    router: Router = Uniform()
    """Who decides; a kind's name alone takes its defaults."""
    eligible: Literal["all", "strict", "inclusive"] | None = None
    """Which experts a date may use. `strict`: their knowledge ends by the query date (no leak). `inclusive`: their
    window has started (leaks at most one window). By default `strict` where an expert has a window, else `all`."""
    adapt: Adapt | None = None
    """Train router and experts on together, in copies: the experts themselves stay as they are."""
    fallback: str | None = None
    """Expert that answers dates at which no other is eligible."""
    default_time: date | None = None
    """Date to assume when none is given."""

    @model_validator(mode="after")
    def _settings_apply(self) -> OutputsSpec:
        if not self.slots:
            raise ValueError("a mixture needs at least one slot")
        if self.eligible == "all" and (self.fallback or self.default_time):
            raise ValueError("fallback and default_time are ignored unless eligible is strict or inclusive")
        return self

    @property
    def needs_date(self) -> bool:
        return self.eligible not in (None, "all") and self.default_time is None
