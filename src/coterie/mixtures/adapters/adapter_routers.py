"""Gates over adapters: their settings, and what each is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, model_validator

from coterie.routing.policy_settings import Policy
from coterie.spec.settings import Count, Number, Positive, Spec


class Gates(Policy):
    top_p: Positive | None = None
    """Keep the fewest experts whose weights sum to at least this; with `top_k`, at most so many."""
    scope: Literal["layer", "linear", "model"] = "layer"
    """One gate a layer (reads what the layer's first adapted linear reads), one a linear, or one for the whole model on the
    embeddings of the tokens."""
    reads: Literal["token", "prefix"] = "token"
    """What a gate sees: the token alone, or the mean of its document so far. Never what comes after."""

    @model_validator(mode="after")
    def _one_selection(self) -> Gates:
        if self.top_p is not None and self.top_p > 1:
            raise ValueError("top_p is a share of the weight: at most 1")
        return self


class UniformGates(Gates):
    """Equal weights over slots."""

    kind: Literal["uniform"] = "uniform"
    """The router."""

    @model_validator(mode="after")
    def _says_nothing_else(self) -> UniformGates:
        if said := changed(self, *(name for name in type(self).model_fields if name != "kind")):
            raise ValueError(f"{said[0]} has no effect on equal weights")
        return self


class Arrow(Gates):
    """From the adapters themselves: the first right singular vector of each update. Nothing is fitted."""

    kind: Literal["arrow"]
    """The router."""
    scope: Literal["layer", "linear"] = "linear"
    """One gate a linear, or one a layer at the layer's first adapted linears."""


class RidgeGates(Gates):
    """Ridge regression of expert on what a gate reads when each text is answered by its own expert. Closed form from running
    sums: an expert more leaves those of the others as they are."""

    kind: Literal["ridge"]
    """The router."""
    temperature: Positive = 0.1
    """Divides the logits, which are near 0 and 1: below 1 sharper, above 1 flatter."""
    tokens: Count | None = 100_000
    """Most tokens to fit on of the valid split of each expert's data; null takes all of it."""
    penalty: Positive = 1e-3
    """Of the weights, in units of the features' mean square."""


class Learned(Gates):
    """Trained on the language-model loss with everything else frozen, or together with the experts (`joint`)."""

    kind: Literal["learned"]
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


def _kind(value: Any) -> str:
    return value.get("kind", "uniform") if isinstance(value, dict) else value.kind


AdaptersRouter = Annotated[
    Annotated[UniformGates, Tag("uniform")]
    | Annotated[Arrow, Tag("arrow")]
    | Annotated[RidgeGates, Tag("ridge")]
    | Annotated[Learned, Tag("learned")],
    Discriminator(_kind),
]


def changed(spec: Spec, *names: str) -> list[str]:
    """Which of these settings are not as they are by default (a resolved recipe says all of them)."""
    fields = type(spec).model_fields
    return [n for n in names if n in fields and getattr(spec, n) != fields[n].get_default(call_default_factory=True)]
