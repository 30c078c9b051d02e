"""The configuration of a mixture of adapters: all that `config.json` of its directory says."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from transformers import AutoConfig

from coterie.mixtures.mixture_config import MixtureConfig

MATURITY = ("new", "training", "mature")
"""Of an expert. A new one has no weight and is not run. While one is in training all that run answer; then the policy
selects."""


class AdaptersConfig(MixtureConfig):
    """Slots over LoRA experts, the gates and their policy, and the base.

    Of an expert also ``"dir"``, ``"digest"`` and ``"maturity"``. ``base``: ``{"dir", "digest"}``. Directories are relative
    to the mixture's. ``router``: ``{"kind", "scope", "reads", "top_k", "top_p", "temperature", ...}``.
    """

    model_type = "coterie_adapters"

    base: dict[str, Any] = field(default_factory=dict)
    router: dict[str, Any] = field(default_factory=dict)
    vocab_size: int = 0
    max_position_embeddings: int = 0
    use_cache: bool = True


AutoConfig.register(AdaptersConfig.model_type, AdaptersConfig, exist_ok=True)
