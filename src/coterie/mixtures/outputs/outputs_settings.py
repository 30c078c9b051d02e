"""At the outputs: what a recipe says of a mixture, and what must be true of its experts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING, Literal, Self

from pydantic import SerializeAsAny, model_validator

from coterie.errors import RequestError
from coterie.experts.train_settings import Train
from coterie.mixtures.place import Neighbours, Place, check_top_k, known
from coterie.mixtures.seats import Eligible, Rule
from coterie.routing.output_routers import OutputRouter, Uniform
from coterie.spec.settings import Positive

if TYPE_CHECKING:
    from coterie.mixtures.seats import Seat


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


class OutputsSettings(Place):
    """All of `OutputsPlace` but the making."""

    router: SerializeAsAny[OutputRouter] = Uniform()
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
    def _settings_apply(self) -> OutputsSettings:
        if not self.slots:
            raise ValueError("a mixture needs at least one slot")
        if self.eligible == "all" and (self.fallback or self.default_time):
            raise ValueError("fallback and default_time are ignored unless eligible is strict or inclusive")
        return self

    @property
    def needs_date(self) -> bool:
        return self.eligible not in (None, "all") and self.default_time is None

    @property
    def fitted_on(self) -> Literal["texts"] | None:
        return "texts" if self.router.fitting is not None else None

    @property
    def unfitted(self) -> Self:
        return self.model_copy(update={"router": self.router.unfitted})

    def checked(self, among: Neighbours, where: str) -> Self:
        """The rule of eligibility must have the dates that it goes by, and a co-adaptation a start that fits."""
        mixture = self
        check_top_k(self.router.top_k, list(set(self.slots)), f"{where}.router.top_k", "experts")
        if self.eligible is None:
            dated = any(among.experts[slot].window is not None for slot in self.slots)
            mixture = self.model_copy(update={"eligible": "strict" if dated else "all"})
            if not dated and (self.fallback or self.default_time):
                raise RequestError(
                    "fallback and default_time are ignored where no expert has a window",
                    where=f"{where}.eligible",
                    do="set eligible: strict, or take them out",
                )
        if self.fallback is not None:
            known(self.fallback, self.slots, f"{where}.fallback", "slot")
        for slot in dict.fromkeys(self.slots):
            if mixture.eligible == "inclusive" and among.experts[slot].window is None:
                raise RequestError(
                    f"eligible: inclusive goes by windows, and expert {slot!r} has none",
                    where=f"{where}.slots",
                    do="give it a window, or set eligible: all",
                )
            if mixture.eligible == "strict" and slot in among.unknown:
                raise RequestError(
                    f"eligible: strict needs to know when the knowledge of expert {slot!r} ends",
                    where=f"{where}.eligible",
                    found=among.unknown[slot],
                    do="give it a window, that corpus a time column, set base.knowledge_until, or set eligible: all",
                )
        if self.adapt is not None:
            mixture._check_start({n: m for n, m in among.mixtures.items() if isinstance(m, OutputsSettings)}, where)
        return mixture

    def _check_start(self, outputs: dict[str, OutputsSettings], where: str) -> None:
        """Co-adaptation starts from a mixture of the same experts, whose router can go on learning."""
        assert self.adapt is not None
        known(self.adapt.start, outputs, f"{where}.adapt.start", "mixture at outputs")
        start, seen = outputs[self.adapt.start], [self.name]
        while start.adapt is not None and start.name not in seen and start.adapt.start in outputs:
            seen.append(start.name)
            start = outputs[start.adapt.start]
        if start.name in seen:
            found = " from ".join(seen)
            raise RequestError("mixtures start from each other in a circle", where=f"{where}.adapt.start", found=found)
        start = outputs[self.adapt.start]
        if start.slots != self.slots:
            raise RequestError(
                "co-adaptation goes on with the experts of the mixture that it starts from",
                where=f"{where}.slots",
                expected=", ".join(start.slots),
                found=", ".join(self.slots),
            )
        if start.eligible not in (None, self.eligible):
            raise RequestError(
                "co-adaptation goes on under the rule of the mixture that it starts from",
                where=f"{where}.eligible",
                expected=start.eligible,
                found=self.eligible,
            )
        shape = {"kind", "features", "hidden"}
        ours, theirs = (m.router.model_dump(include=shape) for m in (self, start))
        if theirs != ours and not isinstance(start.router, Uniform):
            raise RequestError(
                "the router to start from is of another shape",
                where=f"{where}.router",
                expected=str(theirs),
                found=str(ours),
                do="use the router of the mixture to start from, or start from a uniform one",
            )

    def rule(self, seats: Sequence[Seat]) -> Rule:
        """Of eligibility."""
        return {
            "rule": self.eligible or "all",
            "fallback": next((i for i, seat in enumerate(seats) if self.fallback in seat.slots), None),
            "default_time": self.default_time.isoformat() if self.default_time else None,
        }

    def eligibility(self, seats: Sequence[Seat]) -> Eligible:
        """The rule and the dates it goes by; nothing where every date may use every expert."""
        if self.eligible in (None, "all"):
            return {"rule": {"rule": "all"}, "dates": [{} for _ in seats]}
        return {"rule": self.rule(seats), "dates": [seat.dates for seat in seats]}
