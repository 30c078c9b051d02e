"""What `config.json` of every mixture says, wherever its experts meet."""

from __future__ import annotations

from collections import Counter
from dataclasses import field
from typing import Any, TypedDict

from transformers import PretrainedConfig

from coterie.routing.eligibility import Eligibility

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Names under which a configuration says what generation goes by."""


class Slot(TypedDict):
    """A slot of a mixture."""

    name: str
    expert: int
    """Number of its expert."""


class MixtureConfig(PretrainedConfig):
    """Slots over experts, and the special tokens of their tokenizer.

    ``experts``: one entry for each distinct expert, with its ``name``; what else
    it says depends on the place.
    """

    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (the library's own form)

    slots: list[Slot] = field(default_factory=list)
    experts: list[dict[str, Any]] = field(default_factory=list)
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    @property
    def names(self) -> list[str]:
        """Of the distinct experts."""
        return [expert["name"] for expert in self.experts]

    @property
    def slot_to_expert(self) -> list[int]:
        """The expert in each slot."""
        return [slot["expert"] for slot in self.slots]

    @property
    def counts(self) -> list[int]:
        """Slots of each distinct expert."""
        slots = Counter(self.slot_to_expert)
        return [slots[u] for u in range(len(self.names))]

    @property
    def eligibility(self) -> Eligibility:
        """Which experts a date may use: all of them, unless the place has a rule."""
        return Eligibility("all", tuple(self.names))
