"""The configuration of a mixture of adapters: all that `config.json` of its directory says."""

from __future__ import annotations

import json
from dataclasses import field
from pathlib import Path
from typing import Any, Self, TypedDict

from transformers import AutoConfig

from coterie.mixtures.mixture_files import MixtureConfig, context_of
from coterie.spec.json_types import Settings


class Counts(TypedDict):
    """Parameters by part."""

    experts: dict[str, int]
    """By name."""
    router: int
    base: int
    trained: int
    """How many of them all train."""


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

    @classmethod
    def on_base(cls, settings: Settings, base: Path) -> Self:
        """The configuration of a mixture, its settings as `mixture_settings` gives them, on the base in a directory."""
        size = json.loads((base / "config.json").read_text())["vocab_size"]
        context = context_of(base)
        return cls(**settings, vocab_size=size, max_position_embeddings=context, architectures=["AdaptersMixture"])


AutoConfig.register(AdaptersConfig.model_type, AdaptersConfig, exist_ok=True)
