"""The configuration of a mixture at the outputs: all that `config.json` of a mixture directory says."""

from __future__ import annotations

from collections import Counter
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from coterie.mixtures.seats import eligibility
from coterie.routing.eligibility import Eligibility
from coterie.routing.policy import Policy


class OutputsConfig(PretrainedConfig):
    """Slots over experts, a router with its policy, and the rule of eligibility.

    ``slots``: ``[{"name", "expert": index}]``. ``experts``: one entry for each distinct expert, ``[{"name", "dir", "digest",
    "base": dir or None, "start", "end", "knowledge"}]``, directories relative to the mixture's. ``router``: the recipe's
    settings. ``eligible``: ``{"rule", "fallback": index, "default_time"}``.
    """

    model_type = "coterie_outputs"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (the library's own form)

    slots: Any = None
    experts: Any = None
    router: Any = None
    eligible: Any = None
    vocab_size: int = 0
    max_position_embeddings: int = 0
    """Longest sequence that every expert supports."""
    bos_token_id: Any = None
    eos_token_id: Any = None
    pad_token_id: Any = None
    use_cache: bool = True

    @property
    def counts(self) -> list[int]:
        """Slots of each distinct expert."""
        seated = Counter(slot["expert"] for slot in self.slots)
        return [seated[i] for i in range(len(self.experts))]

    @property
    def policy(self) -> Policy:
        return Policy(self.router["temperature"], self.router["top_k"], self.router["top_p"])

    @property
    def eligibility(self) -> Eligibility:
        return eligibility(self.eligible, [e["name"] for e in self.experts], self.experts)


AutoConfig.register(OutputsConfig.model_type, OutputsConfig, exist_ok=True)
