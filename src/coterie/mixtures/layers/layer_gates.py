"""Gates at the layers. Each class is all there is to say of one: its name, its settings, on what it is fitted, and how.

A gate is linear from hidden states to logits over slots, one a layer, with the semantics of standard checkpoints. Kinds
differ in where its weights come from: nowhere (all zero), a draw, running sums that are solved in closed form, or training.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from coterie.experts.train_settings import Train
from coterie.spec.kind import Kind
from coterie.spec.settings import Count, Number, Positive

if TYPE_CHECKING:
    from torch import Tensor

    from coterie.routing.gates import Centroids, Ridge


class LayerGate(Kind):
    """A router at layers: one gate a layer."""

    noun: ClassVar[str] = "router at layers"
    default_tag: ClassVar[str | None] = "uniform"
    reads_expert_data: ClassVar[bool] = False
    """Whether it is fitted on the valid split of each expert's data."""
    tuned: ClassVar[bool] = False
    """Whether only `tune` trains it."""

    kind: str
    """The router."""

    @property
    def slots_kept(self) -> int | None:
        """`top_k` counted in slots; None: all."""
        return None

    @property
    def has_bias(self) -> bool:
        return False

    @property
    def initial_std(self) -> float | None:
        """Standard deviation of the weights it begins with; None: zeros."""
        return None

    @property
    def label_training(self) -> Train | None:
        """How it learns to tell from which expert's data a text is, if it does."""
        return None

    @property
    def auxiliary(self) -> dict[str, float]:
        """Coefficients of the auxiliary losses while it is trained."""
        return {"balance_by": 0.0, "z_by": 0.0, "entropy_by": 0.0}


class Uniform(LayerGate):
    """Equal weights over slots."""

    kind: Literal["uniform"] = "uniform"
    """The router."""


class SlotGate(LayerGate):
    """A gate with weights of its own."""

    top_k: Count | None = None
    """Keep the k slots with the largest weights, as standard checkpoints do; all by default. Slots that share an expert
    count one by one: with 16 slots for each expert, 2 keeps one expert."""
    bias: bool = False
    """Give gates a bias, one number a slot. Standard checkpoints have none, so such a mixture exports as `coterie` only."""

    @property
    def slots_kept(self) -> int | None:
        return self.top_k

    @property
    def has_bias(self) -> bool:
        return self.bias


class Random(SlotGate):
    """Random weights: what a gate must beat, and a start for `tune`."""

    kind: Literal["random"] = "random"
    """The router."""
    std: Positive = 0.02
    """Standard deviation of the weights."""

    @property
    def initial_std(self) -> float | None:
        return self.std


class ClosedFormGate(SlotGate):
    """A gate whose weights are solved from running sums over hidden states."""

    features: Literal["mixture", "own"] = "mixture"
    """Hidden states that gates are fitted on. `mixture`: those that they will read, one layer after the other. `own`: those
    of each text answered by its own expert alone; one pass, and an expert more changes nothing for the others."""
    temperature: Positive = 0.1
    """Divides the logits: below 1 sharper, above 1 flatter. It becomes part of the weights."""

    @property
    def example_prompts(self) -> Mapping[str, Sequence[str]] | None:
        """Texts to fit on, by expert; None: the valid split of each expert's data."""
        return None

    @property
    def most_tokens(self) -> int | None:
        """Most tokens to fit on, over all experts; None: all there are."""
        return None

    @abstractmethod
    def sums(self, hidden: int, experts: int) -> Ridge | Centroids:
        """Empty sums."""

    @abstractmethod
    def solve(self, sums: Ridge | Centroids) -> tuple[Tensor, Tensor]:
        """From sums to weights [U, H] and biases [U]."""


class Prompt(ClosedFormGate):
    """From example prompts of each expert: the nearest mean of their hidden states."""

    learns_from = "the prompts"

    kind: Literal["prompt"] = "prompt"
    """The router."""
    prompts: dict[str, tuple[str, ...]]
    """Example prompts, by expert."""

    @property
    def example_prompts(self) -> Mapping[str, Sequence[str]]:
        return self.prompts

    def sums(self, hidden: int, experts: int) -> Centroids:
        from coterie.routing.gates import Centroids

        return Centroids(hidden, experts)

    def solve(self, sums: Ridge | Centroids) -> tuple[Tensor, Tensor]:
        return sums.solve(intercept=self.bias)


class RidgeRegression(ClosedFormGate):
    """Ridge regression of expert on hidden states, in closed form from running sums."""

    learns_from = "the `valid` split"
    paper: ClassVar[str | None] = "DUME, arXiv 2603.29765"
    reads_expert_data: ClassVar[bool] = True

    kind: Literal["ridge"] = "ridge"
    """The router."""
    tokens: Count | None = 50_000
    """Most tokens to fit on, in equal parts from the valid split of each expert's data; null takes all of it."""
    penalty: Positive = 1e-3
    """Of the weights, in units of the features' mean sum of squares."""

    @property
    def most_tokens(self) -> int | None:
        return self.tokens

    def sums(self, hidden: int, experts: int) -> Ridge:
        from coterie.routing.gates import Ridge

        return Ridge(hidden, experts)

    def solve(self, sums: Ridge | Centroids) -> tuple[Tensor, Tensor]:
        from coterie.routing.gates import Ridge

        assert isinstance(sums, Ridge)
        return sums.solve(self.penalty, self.bias)


class TrainedGate(SlotGate):
    """A gate that is trained; it begins with small random weights."""

    balance: Number = 0.0
    """Coefficient of the balance loss, taken of each layer's gate over distinct experts."""
    z: Number = 0.0
    """Coefficient of the squared log-partition of each gate's logits."""
    entropy: Number = 0.0
    """Coefficient of the mean entropy of each gate's softmax over distinct experts (positive: sharper routing)."""

    @property
    def initial_std(self) -> float | None:
        return 0.02

    @property
    def auxiliary(self) -> dict[str, float]:
        return {"balance_by": self.balance, "z_by": self.z, "entropy_by": self.entropy}


class Label(TrainedGate):
    """Trained to tell from which expert's data a text is (cross-entropy); slots that share an expert are one label."""

    learns_from = "the `valid` split"
    reads_expert_data: ClassVar[bool] = True

    kind: Literal["label"] = "label"
    """The router."""
    tokens: Count = 200_000
    """Budget in tokens, from the valid split of each expert's data in equal parts."""
    learning_rate: Positive = 0.01
    """AdamW's peak learning rate."""
    batch_size: Count = 8
    """Sequences a step."""

    @property
    def label_training(self) -> Train | None:
        return Train(tokens=self.tokens, learning_rate=self.learning_rate, batch_size=self.batch_size, weight_decay=0.0)


class Learned(TrainedGate):
    """Trained on the language-model loss, as `tune` says; starts from small random weights."""

    learns_from = "the `train` split"

    tuned: ClassVar[bool] = True

    kind: Literal["learned"] = "learned"
    """The router."""
