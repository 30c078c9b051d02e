"""Gates over LoRA experts. Each class is all there is to say of one: its name, its settings, on what it is fitted, and how.

A gate is linear in what it reads and has no bias. Kinds differ in where its rows come from: nowhere (equal weights), the
adapters themselves, running sums that are solved in closed form, or training.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import model_validator

from coterie.experts.train_settings import Train
from coterie.models.lora_settings import Lora
from coterie.routing.policy_settings import PolicySettings
from coterie.spec.json_types import Settings
from coterie.spec.kind import Kind
from coterie.spec.settings import Count, Number, Positive, Share, Shares, Spec

if TYPE_CHECKING:
    from torch import Tensor

    from coterie.routing.gates import Ridge


Maturity = Literal["new", "training", "mature"]
"""Of an expert. A new one has no weight and is not run. While one is in training all that run answer; then the policy
selects."""


class AdapterGate(PolicySettings, Kind):
    """A router at adapters."""

    noun: ClassVar[str] = "router at adapters"
    default_tag: ClassVar[str | None] = "uniform"
    has_rows: ClassVar[bool] = True
    """Whether it has parameters; without, all weights are equal."""
    absolute: ClassVar[bool] = False
    """Whether a projection counts whatever its sign."""
    reads_expert_data: ClassVar[bool] = False
    """Whether it is fitted on the valid split of each expert's data."""
    joint: ClassVar[bool] = False
    """Whether it can be trained together with the experts."""

    kind: str
    """The router."""
    scope: Literal["layer", "linear", "model"] = "layer"
    """One gate a layer (reads what the layer's first adapted linear reads), one a linear, or one for the whole model on the
    embeddings of the tokens."""
    reads: Literal["token", "prefix"] = "token"
    """What a gate sees: the token alone, or the mean of its document so far. Never what comes after."""

    @property
    def training(self) -> Train | None:
        """How it is trained on the language-model loss with all else frozen, if it is."""
        return None

    @property
    def settings(self) -> Settings:
        """What a mixture's configuration says of its gates."""
        return self.model_dump(mode="json", include={"kind", "scope", "reads", "top_k", "top_p", "temperature"})


class Uniform(AdapterGate):
    """Equal weights over slots."""

    has_rows: ClassVar[bool] = False
    joint: ClassVar[bool] = True

    kind: Literal["uniform"] = "uniform"
    """The router."""

    @model_validator(mode="after")
    def _has_no_settings(self) -> Uniform:
        if others := changed(self, *(name for name in type(self).model_fields if name != "kind")):
            raise ValueError(f"{others[0]} has no effect on equal weights")
        return self


class FromAdaptersGate(AdapterGate):
    """A gate whose rows are computed from the adapters. Nothing is fitted and no data is read."""

    @abstractmethod
    def row(self, factors: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """An expert's row [H] from the factors (A [R, H], B [O, R]) of its linears that read what the gate reads."""


class Arrow(FromAdaptersGate):
    """From the adapters themselves: the first right singular vector of each update. Nothing is fitted."""

    paper: ClassVar[str | None] = "Ostapenko et al. 2024, arXiv 2405.11157"
    absolute: ClassVar[bool] = True

    kind: Literal["arrow"] = "arrow"
    """The router."""
    scope: Literal["layer", "linear"] = "linear"
    """One gate a linear, or one a layer at the layer's first adapted linears."""

    def row(self, factors: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        from coterie.routing.arrow import prototype

        return prototype(factors)


class ClosedFormGate(AdapterGate):
    """A gate whose rows are solved from running sums over what it reads when each text is answered by its own expert."""

    reads_expert_data: ClassVar[bool] = True

    tokens: Count | None = 100_000
    """Most tokens to fit on of the valid split of each expert's data; null takes all of it."""

    @abstractmethod
    def solve(self, sums: Ridge) -> Tensor:
        """Rows [U, H] from the sums of all experts."""


class RidgeRegression(ClosedFormGate):
    """Ridge regression of expert on what a gate reads when each text is answered by its own expert. Closed form from running
    sums: an expert more leaves those of the others as they are."""

    learns_from = "the `valid` split"
    paper: ClassVar[str | None] = "DUME, arXiv 2603.29765"

    kind: Literal["ridge"] = "ridge"
    """The router."""
    temperature: Positive = 0.1
    """Divides the logits, which are near 0 and 1: below 1 sharper, above 1 flatter."""
    penalty: Positive = 1e-3
    """Of the weights, in units of the features' mean square."""

    def solve(self, sums: Ridge) -> Tensor:
        return sums.solve(self.penalty, intercept=False)[0]


class Learned(AdapterGate):
    """Trained on the language-model loss with everything else frozen, or together with the experts (`joint`)."""

    learns_from = "the `valid` split; with `joint`, the training data"
    reads_expert_data: ClassVar[bool] = True
    joint: ClassVar[bool] = True

    kind: Literal["learned"] = "learned"
    """The router."""
    tokens: Count = 300_000
    """Budget in tokens, from the valid split of each expert's data in equal parts; not with `joint`, which has its own."""
    learning_rate: Positive = 0.01
    """AdamW's peak learning rate; not with `joint`."""
    batch_size: Count = 8
    """Sequences in one forward pass; not with `joint`."""
    accumulation: Count = 1
    """Forward passes before each optimizer step; not with `joint`."""
    balance: Number = 0.0
    """Coefficient of the balance loss, taken of each gate over distinct experts."""
    z: Number = 0.0
    """Coefficient of the squared log-partition of each gate's logits."""
    entropy: Number = 0.0
    """Coefficient of the mean entropy of each gate's softmax (positive: sharper routing)."""

    @property
    def training(self) -> Train | None:
        return Train(
            tokens=self.tokens,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            accumulation=self.accumulation,
            weight_decay=0.0,
        )


def changed(spec: Spec, *names: str) -> list[str]:
    """Which of these settings are not as they are by default (a resolved recipe writes out all of them)."""
    fields = type(spec).model_fields
    return [n for n in names if n in fields and getattr(spec, n) != fields[n].get_default(call_default_factory=True)]


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


def mixture_settings(
    experts: Mapping[str, str | None],
    slots: Iterable[tuple[str, int]],
    router: Settings,
    *,
    base: str | None = None,
    maturity: Maturity = "mature",
) -> Settings:
    """See `AdaptersConfig`.

    Args:
        experts: digest of each distinct expert, by name; None: of no matter.
        slots: name and number of the expert of each.
        base: its digest.
    """
    return {
        "slots": [{"name": name, "expert": expert} for name, expert in slots],
        "experts": [{"name": n, "dir": f"experts/{n}", "digest": d, "maturity": maturity} for n, d in experts.items()],
        "base": {"dir": "base", "digest": base},
        "router": dict(router),
    }
