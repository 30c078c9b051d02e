"""Mixtures at the outputs: routers on the experts' probabilities, and the dates that may use each expert."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from coterie.recipe.slots import Policy, Seats
from coterie.recipe.spec import Count, Number, Positive, Whole
from coterie.recipe.train import Train


class Uniform(Policy):
    """Equal weights over eligible slots."""

    kind: Literal["uniform"] = "uniform"
    """The router."""


class _Fitted(Policy):
    tokens: Count | None = 200_000
    """Most tokens to fit on, in equal parts from the valid split of each expert's data; null takes all of it."""
    epochs: Whole = 30
    """Most passes over them; fitting stops early when the held-out part of them no longer improves."""
    patience: Count = 3
    """Passes without improvement before it stops."""
    learning_rate: Positive = 0.01
    """AdamW's learning rate."""
    weight_decay: Number = 0.01
    """AdamW's weight decay."""
    batch_size: Count = 16
    """Sequences a step."""
    entropy: Number = 0.0
    """Coefficient of the mean entropy of the weights (positive: sharper routing)."""
    balance: Number = 0.0
    """Coefficient of the balance loss over distinct experts."""
    z: Number = 0.0
    """Coefficient of the squared log-partition of the logits."""


class Posterior(_Fitted):
    """Weights from the experts' own likelihood of the prefix: w_s(t) proportional to
    prior_s exp(sum over u < t of decay^(t-u) log P_s(x_u) / tau)."""

    kind: Literal["posterior"] = "posterior"
    """The router."""
    decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """How fast old tokens are forgotten; 1 never."""
    tau: Positive = 1.0
    """Temperature of the likelihoods."""
    fit: bool = True
    """Learn prior, decay and tau on the valid split, starting from the values above."""


class Linear(_Fitted):
    """Linear in causal prefix features."""

    kind: Literal["linear"]
    """The router."""
    features: tuple[Literal["tokens", "posterior"], ...] = ("tokens",)
    """`tokens`: frequencies of the prefix's tokens; `posterior`: the posterior's log-weights."""


class Mlp(Linear):
    """One hidden layer on causal prefix features."""

    kind: Literal["mlp"]  # type: ignore[assignment]
    """The router."""
    hidden: Count = 32
    """Width of the hidden layer."""


def _kind(value: Any) -> str:
    return value.get("kind", "uniform") if isinstance(value, dict) else value.kind


Router = Annotated[
    Annotated[Uniform, Tag("uniform")]
    | Annotated[Posterior, Tag("posterior")]
    | Annotated[Linear, Tag("linear")]
    | Annotated[Mlp, Tag("mlp")],
    Discriminator(_kind),
]


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
