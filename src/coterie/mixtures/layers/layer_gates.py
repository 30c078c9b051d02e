"""Gates at the layers: their settings, and what each is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from coterie.spec.settings import Count, Number, Positive, Spec


class LayerGates(Spec):
    top_k: Count | None = None
    """Keep the k slots with the largest weights, as standard checkpoints do; all by default. Slots that share an expert
    count one by one: with 16 slots for each expert, 2 keeps one expert."""
    bias: bool = False
    """Give gates a bias, one number a slot. Standard checkpoints have none, so such a mixture exports as `coterie` only."""


class UniformLayers(Spec):
    """Equal weights over slots."""

    kind: Literal["uniform"] = "uniform"
    """The router."""

    @property
    def top_k(self) -> None:
        """All slots answer."""
        return

    @property
    def bias(self) -> bool:
        """None is needed."""
        return False


class RandomLayers(LayerGates):
    """Random weights: what a gate must beat, and a start for `tune`."""

    kind: Literal["random"]
    """The router."""
    std: Positive = 0.02
    """Standard deviation of the weights."""


class _Read(LayerGates):
    features: Literal["mixture", "own"] = "mixture"
    """Hidden states that gates are fitted on. `mixture`: those that they will read, one layer after the other. `own`: those
    of each text answered by its own expert alone; one pass, and an expert more changes nothing for the others."""
    temperature: Positive = 0.1
    """Divides the logits: below 1 sharper, above 1 flatter. It becomes part of the weights."""


class PromptLayers(_Read):
    """From example prompts of each expert: the nearest mean of their hidden states."""

    kind: Literal["prompt"]
    """The router."""
    prompts: dict[str, tuple[str, ...]]
    """Example prompts, by expert."""


class RidgeLayers(_Read):
    """Ridge regression of expert on hidden states, in closed form from running sums."""

    kind: Literal["ridge"]
    """The router."""
    tokens: Count | None = 50_000
    """Most tokens to fit on, in equal parts from the valid split of each expert's data; null takes all of it."""
    penalty: Positive = 1e-3
    """Of the weights, in units of the features' mean sum of squares."""


class _Auxiliary(LayerGates):
    balance: Number = 0.0
    """Coefficient of the balance loss, taken of each layer's gate over distinct experts."""
    z: Number = 0.0
    """Coefficient of the squared log-partition of each gate's logits."""
    entropy: Number = 0.0
    """Coefficient of the mean entropy of each gate's softmax over distinct experts (positive: sharper routing)."""


class LabelLayers(_Auxiliary):
    """Trained to tell from which expert's data a text is (cross-entropy); slots that share an expert are one label."""

    kind: Literal["label"]
    """The router."""
    tokens: Count = 200_000
    """Budget in tokens, from the valid split of each expert's data in equal parts."""
    learning_rate: Positive = 0.01
    """AdamW's peak learning rate."""
    batch_size: Count = 8
    """Sequences a step."""


class LearnedLayers(_Auxiliary):
    """Trained on the language-model loss, as `tune` says; starts from small random weights."""

    kind: Literal["learned"]
    """The router."""


def _kind(value: Any) -> str:
    return value.get("kind", "uniform") if isinstance(value, dict) else value.kind


LayersRouter = Annotated[
    Annotated[UniformLayers, Tag("uniform")]
    | Annotated[RandomLayers, Tag("random")]
    | Annotated[PromptLayers, Tag("prompt")]
    | Annotated[RidgeLayers, Tag("ridge")]
    | Annotated[LabelLayers, Tag("label")]
    | Annotated[LearnedLayers, Tag("learned")],
    Discriminator(_kind),
]
