"""The configuration of a mixture of adapters: all that `config.json` of its directory says."""

from __future__ import annotations

from collections import Counter
from typing import Any

from transformers import AutoConfig, PretrainedConfig

MATURITY = ("new", "training", "mature")
"""Of an expert. A new one has no weight and is not run. While one is in training all that run answer; then the policy
selects."""


class AdaptersConfig(PretrainedConfig):
    """Slots over LoRA experts, the gates and their policy, and the base.

    ``slots``: ``[{"name", "expert": index}]``. ``experts``: one entry for each distinct expert, ``[{"name", "dir",
    "digest", "maturity"}]``. ``base``: ``{"dir", "digest"}``. Directories are relative to the mixture's. ``router``:
    ``{"kind", "scope", "reads", "top_k", "top_p", "temperature", ...}``.
    """

    model_type = "coterie_adapters"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (the library's own form)

    slots: Any = None
    experts: Any = None
    base: Any = None
    router: Any = None
    vocab_size: int = 0
    max_position_embeddings: int = 0
    bos_token_id: Any = None
    eos_token_id: Any = None
    pad_token_id: Any = None
    use_cache: bool = True

    @property
    def counts(self) -> list[int]:
        """Slots of each distinct expert."""
        seated = Counter(slot["expert"] for slot in self.slots)
        return [seated[i] for i in range(len(self.experts))]


AutoConfig.register(AdaptersConfig.model_type, AdaptersConfig, exist_ok=True)
