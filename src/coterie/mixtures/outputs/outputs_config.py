"""The configuration of a mixture at the outputs: all that `config.json` of a mixture directory says."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from transformers import AutoConfig

from coterie.mixtures.mixture_files import MixtureConfig
from coterie.mixtures.seats import Rule, eligibility
from coterie.routing.eligibility import Eligibility
from coterie.routing.logits_to_weights import Policy


class OutputsConfig(MixtureConfig):
    """Slots over experts, a router with its policy, and the rule of eligibility.

    Of an expert also ``"dir"``, ``"digest"``, ``"base"`` (a directory or None), ``"start"``, ``"end"`` and ``"knowledge"``;
    directories are relative to the mixture's. ``router``: the recipe's settings. ``eligible``: ``{"rule", "fallback": index,
    "default_time"}``.
    """

    model_type = "coterie_outputs"

    router: dict[str, Any] = field(default_factory=dict)
    eligible: Rule = field(default_factory=lambda: Rule(rule="all"))
    vocab_size: int = 0
    max_position_embeddings: int = 0
    """Longest sequence that every expert supports."""
    use_cache: bool = True

    @property
    def policy(self) -> Policy:
        return Policy(self.router["temperature"], self.router["top_k"], self.router["top_p"])

    @property
    def eligibility(self) -> Eligibility:
        return eligibility(self.eligible, self.names, self.experts)


AutoConfig.register(OutputsConfig.model_type, OutputsConfig, exist_ok=True)
