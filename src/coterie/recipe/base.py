"""What experts start from: fresh weights, a checkpoint, or fresh weights pre-trained on a mix of the corpora."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, model_validator

from coterie.recipe.spec import Count, Shares, Spec
from coterie.recipe.train import Train


class TrainedTokenizer(Spec):
    """A byte-level BPE tokenizer trained on the recipe's corpora (their training splits)."""

    train: Literal["bpe"]
    """The algorithm."""
    vocab_size: Count = 2048
    """Number of tokens, the 256 bytes and the special tokens included."""
    corpora: tuple[str, ...] | None = None
    """Corpora to train on; by default all that the recipe trains on."""


class Pretrain(Spec):
    """Training of the base on a mix of corpora before experts branch."""

    corpora: Shares
    """Corpora and their weights in the mix; a list means equal weights."""
    tokens: Count
    """Token budget."""
    train: Train = Train()
    """Training settings; the budget is `tokens` above."""


class FreshBase(Spec):
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
    tokenizer: TrainedTokenizer | str = TrainedTokenizer(train="bpe")
    """Train one, or a local directory or hub id."""
    pretrain: Pretrain | None = None
    """Train the base on a mix first; experts that branch from one trained base waste far less."""
    seed: int | None = None
    """Seed of the fresh weights; the recipe's by default."""
    knowledge_until: date | None = None
    """Date at which the base's knowledge ends, when the data does not tell."""

    @model_validator(mode="after")
    def _heads_divide(self) -> FreshBase:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        if self.init != "gpt2" and self.hidden_size // self.heads % 2:
            raise ValueError(
                f"hidden_size / heads is {self.hidden_size // self.heads}; rotary positions need an even number"
            )
        if self.kv_heads is not None and (self.init == "gpt2" or self.heads % self.kv_heads):
            raise ValueError("kv_heads must divide heads, and gpt2 has none")
        return self


class CheckpointBase(Spec):
    """A Hugging Face model: a local directory or a hub id."""

    path: str
    """Directory (relative to the recipe) or hub id."""
    revision: str | None = None
    """Commit or tag of a hub model."""
    pretrain: Pretrain | None = None
    """Train it further on a mix before experts branch."""
    knowledge_until: date | None = None
    """Date at which the checkpoint's knowledge ends; needed for `eligible: strict`."""


def _which(value: Any) -> str:
    keys = value if isinstance(value, dict) else value.__class__.model_fields
    return "checkpoint" if "path" in keys else "fresh"


Base = Annotated[Annotated[FreshBase, Tag("fresh")] | Annotated[CheckpointBase, Tag("checkpoint")], Discriminator(_which)]
