"""How a router is fitted on cached scores."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class FitSettings:
    """Optimizer, early stopping and auxiliary losses; the defaults are the recipe's."""

    tokens: int | None = 200_000
    """Most tokens to fit on, over all sets of blocks; None: all."""
    epochs: int = 30
    patience: int = 3
    learning_rate: float = 0.01
    weight_decay: float = 0.01
    batch_size: int = 16
    entropy: float = 0.0
    """Coefficient of the mean entropy of the weights."""
    balance: float = 0.0
    """Coefficient of the balance loss over distinct experts (Switch Transformer, arXiv 2101.03961)."""
    z: float = 0.0
    """Coefficient of the squared log-partition of the logits (ST-MoE, arXiv 2202.08906)."""
    temperature: float = 1.0
    """The policy's, so that what is fitted is what is used."""

    @classmethod
    def names(cls) -> list[str]:
        return [field.name for field in fields(cls)]
