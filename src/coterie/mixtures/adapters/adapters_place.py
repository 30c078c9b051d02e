"""Mixtures of LoRA experts on one frozen base: gates that are learned or need no training, and joint training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from coterie.errors import RequestError
from coterie.experts.train_settings import Train
from coterie.mixtures.adapters.adapter_routers import AdaptersRouter, UniformGates, changed
from coterie.mixtures.place import Seats
from coterie.models.lora_settings import Lora
from coterie.spec.settings import Count, Share, Shares, Spec

if TYPE_CHECKING:
    from coterie.experts.expert_settings import Expert


class Joint(Spec):
    """Experts and router trained together, from fresh adapters."""

    experts: Count
    """How many."""
    lora: Lora = Lora()
    """Shape of each."""
    corpora: Shares
    """Corpora (their training splits) and their shares of the tokens; a list means equal shares."""
    tokens: Count
    """Token budget."""
    dense: Share = 0.2
    """Share of the steps, from the first, in which all experts answer, so that each learns something before `top_k` or
    `top_p` selects (experts in training collaborate, mature ones are delegated to)."""
    train: Train = Train()
    """Training settings; the budget is `tokens` above."""

    @model_validator(mode="after")
    def _one_budget(self) -> Joint:
        if self.train.tokens is not None or self.train.epochs is not None:
            raise ValueError("the budget is joint.tokens: remove tokens and epochs from joint.train")
        self.train.refuse("joint.train", "early_stopping", "snapshots")
        if not self.corpora:
            raise ValueError("joint training needs at least one corpus")
        return self


_OWN_BUDGET = ("tokens", "learning_rate", "batch_size", "accumulation")


class AdaptersSpec(Seats):
    """Slots over LoRA experts on one frozen base, mixed inside the model."""

    at: Literal["adapters"]
    """Where experts meet: `adapters` mixes updates of one frozen base."""
    router: AdaptersRouter = Field(default_factory=UniformGates)
    """Who decides; a kind's name alone takes its defaults."""
    joint: Joint | None = None
    """Train experts and router together instead of seating experts of the recipe."""

    @model_validator(mode="after")
    def _settings_apply(self) -> AdaptersSpec:
        if bool(self.slots) == (self.joint is not None):
            raise ValueError("give either slots or joint")
        if self.joint is None:
            return self
        if self.router.kind not in ("learned", "uniform"):
            raise ValueError(f"a router of kind {self.router.kind} is not trained, so joint cannot train it: use learned")
        if said := changed(self.router, *_OWN_BUDGET):
            raise ValueError(f"router.{said[0]} is ignored with joint: set joint.tokens and joint.train")
        if self.router.top_k is not None and self.router.top_k > self.joint.experts:
            raise ValueError(f"top_k {self.router.top_k} is above the number of experts, {self.joint.experts}")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Slots: as given, or those of joint experts."""
        if self.joint is not None:
            return tuple(f"expert-{i + 1}" for i in range(self.joint.experts))
        return self.slots


def check(mixture: AdaptersSpec, experts: list[Expert], corpora: Any, where: str) -> AdaptersSpec:
    """What a mixture of adapters asks of the experts of a recipe.

    Raises:
        RequestError: an expert is no adapter; two rest on different models; a router needs data of an expert without.
    """
    by_name = {e.name: e for e in experts}
    for corpus in mixture.joint.corpora if mixture.joint else ():
        if corpus not in corpora:
            raise RequestError(
                f"no corpus is called {corpus!r}", where=f"{where}.joint.corpora", expected=", ".join(corpora)
            )
    for name in dict.fromkeys(mixture.slots):
        expert = by_name[name]
        if expert.kind != "lora":
            raise RequestError(
                f"expert {name!r} is no LoRA adapter",
                where=f"{where}.slots",
                expected="kind lora",
                found=f"kind {expert.kind}",
                do="train it as kind lora, or let it meet the others at outputs",
            )
        if (rests := root(by_name, expert)) != (first := root(by_name, by_name[mixture.slots[0]])):
            raise RequestError(
                f"experts {mixture.slots[0]!r} and {name!r} rest on different models, and a mixture has one base",
                where=f"{where}.slots",
                expected=f"from: {first}",
                found=f"from: {rests}",
            )
        if mixture.router.kind in ("ridge", "learned") and not expert.corpus:
            raise RequestError(
                f"a router of kind {mixture.router.kind} is fitted on each expert's data, and {name!r} names none",
                where=f"{where}.router.kind",
                do=f"give {name!r} a corpus, or use arrow or uniform",
            )
    return mixture


def root(by_name: dict[str, Expert], expert: Expert) -> str:
    """What an adapter rests on: where the first adapter of its line branches from."""
    while expert.from_ in by_name and by_name[expert.from_].kind == "lora":
        expert = by_name[expert.from_]
    return expert.from_
