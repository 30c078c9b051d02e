"""The architecture of fresh weights."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from coterie.spec.settings import Count, Spec


class Architecture(Spec):
    """Fresh weights of a small architecture."""

    init: Literal["llama", "gpt2", "qwen3"] = "llama"
    """Architecture."""
    hidden_size: Count = 128
    """Width."""
    layers: Count = 4
    """Depth."""
    heads: Count = 4
    """Attention heads."""
    kv_heads: Count | None = None
    """Key and value heads (grouped-query attention); as many as `heads` by default. Not for gpt2."""
    intermediate_size: Count | None = None
    """Width of the feed-forward block; by default 4 x width (gpt2) or 8/3 x width rounded up to 32."""
    context: Count | None = None
    """Longest sequence the architecture supports; by default 4 x `sequence_length`."""
    tie_embeddings: bool = True
    """Share the input and output embedding."""
    seed: int | None = None
    """Seed of the fresh weights; the recipe's by default."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Architecture:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        if self.init != "gpt2" and self.hidden_size // self.heads % 2:
            raise ValueError(
                f"hidden_size / heads is {self.hidden_size // self.heads}; rotary positions need an even number"
            )
        if self.kv_heads is not None and (self.init == "gpt2" or self.heads % self.kv_heads):
            raise ValueError("kv_heads must divide heads, and gpt2 has none")
        return self
