"""The shape of a LoRA adapter."""

from __future__ import annotations

from coterie.spec.settings import Count, Positive, Share, Spec


class Lora(Spec):
    """A LoRA adapter on the frozen base."""

    r: Count = 16
    """Rank."""
    alpha: Positive = 32
    """Scale: the update is multiplied by alpha / r."""
    dropout: Share = 0.0
    """Dropout before A."""
    targets: str | tuple[str, ...] = "all-linear"
    """Linear layers that get an adapter; `all-linear` leaves out the output head."""
