"""Routers at the outputs: their settings, and what each is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from coterie.routing.policy_settings import Policy
from coterie.spec.settings import Count, Number, Positive, Whole


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
