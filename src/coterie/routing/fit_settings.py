"""How a router is fitted on cached scores."""

from __future__ import annotations

from coterie.routing.policy_settings import PolicySettings
from coterie.spec.settings import Count, Number, Positive, Whole


class FitSettings(PolicySettings):
    """Optimizer, early stopping and auxiliary losses; the policy's temperature, so that what is fitted is what is used."""

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
    """Coefficient of the balance loss over distinct experts (Switch Transformer)."""
    z: Number = 0.0
    """Coefficient of the squared log-partition of the logits."""
