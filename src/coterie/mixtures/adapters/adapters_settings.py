"""At adapters: what a recipe says of a mixture, and what must be true of its experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self

from pydantic import SerializeAsAny, model_validator

from coterie.errors import RequestError
from coterie.mixtures.adapters.adapter_routers import AdapterGate, ClosedFormGate, Joint, Uniform, changed
from coterie.mixtures.place import Neighbours, Place, check_top_k, known

if TYPE_CHECKING:
    from coterie.experts.expert_settings import Expert


_OWN_BUDGET = ("tokens", "learning_rate", "batch_size", "accumulation")


class AdaptersSettings(Place):
    """All of `AdaptersPlace` but the making."""

    router: SerializeAsAny[AdapterGate] = Uniform()
    """Who decides; a kind's name alone takes its defaults."""
    joint: Joint | None = None
    """Train experts and router together instead of seating experts of the recipe."""

    @model_validator(mode="after")
    def _settings_apply(self) -> AdaptersSettings:
        if bool(self.slots) == (self.joint is not None):
            raise ValueError("give either slots or joint")
        if self.joint is None:
            return self
        if not self.router.joint:
            able = " or ".join(gate.tag() or "" for gate in AdapterGate.members() if gate.joint)
            raise ValueError(f"a router of kind {self.router.kind} cannot be trained with joint: use {able}")
        if own := changed(self.router, *_OWN_BUDGET):
            raise ValueError(f"router.{own[0]} is ignored with joint: set joint.tokens and joint.train")
        if self.router.top_k is not None and self.router.top_k > self.joint.experts:
            raise ValueError(f"top_k {self.router.top_k} is above the number of experts, {self.joint.experts}")
        return self

    @property
    def own_corpora(self) -> tuple[str, ...]:
        return tuple(self.joint.corpora) if self.joint else ()

    @property
    def names(self) -> tuple[str, ...]:
        """Slots: as given, or those of joint experts."""
        if self.joint is not None:
            return tuple(f"expert-{i + 1}" for i in range(self.joint.experts))
        return self.slots

    @property
    def fitted_on(self) -> Literal["texts", "texts of each expert"] | None:
        if isinstance(self.router, ClosedFormGate):
            return "texts of each expert"
        return "texts" if self.router.training is not None else None

    @property
    def unfitted(self) -> Self:
        return self if self.fitted_on is None else self.model_copy(update={"router": Uniform()})

    def checked(self, among: Neighbours, where: str) -> Self:
        """All experts are adapters of one base, and a fitted router finds data of each."""
        for corpus in self.own_corpora:
            known(corpus, among.corpora, f"{where}.joint.corpora", "corpus")
        if self.slots:
            check_top_k(self.router.top_k, list(set(self.slots)), f"{where}.router.top_k", "experts")
        for name in dict.fromkeys(self.slots):
            expert = among.experts[name]
            if expert.kind != "lora":
                raise RequestError(
                    f"expert {name!r} is no LoRA adapter",
                    where=f"{where}.slots",
                    expected="kind lora",
                    found=f"kind {expert.kind}",
                    do="train it as kind lora, or let it meet the others at outputs",
                )
            rests, first = (_root(among.experts, among.experts[n]) for n in (name, self.slots[0]))
            if rests != first:
                raise RequestError(
                    f"experts {self.slots[0]!r} and {name!r} rest on different models, and a mixture has one base",
                    where=f"{where}.slots",
                    expected=f"from: {first}",
                    found=f"from: {rests}",
                )
            if self.router.reads_expert_data and not expert.corpus:
                raise RequestError(
                    f"a router of kind {self.router.kind} is fitted on each expert's data, and {name!r} names none",
                    where=f"{where}.router.kind",
                    do=f"give {name!r} a corpus, or use arrow or uniform",
                )
        return self


def _root(experts: Mapping[str, Expert], expert: Expert) -> str:
    """What an adapter rests on: where the first adapter of its line branches from."""
    while expert.from_ in experts and experts[expert.from_].kind == "lora":
        expert = experts[expert.from_]
    return expert.from_
