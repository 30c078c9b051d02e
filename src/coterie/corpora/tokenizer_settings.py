"""How a tokenizer is trained."""

from __future__ import annotations

from typing import Literal

from coterie.spec.settings import Count, Spec


class TrainedTokenizer(Spec):
    """A byte-level BPE tokenizer trained on the recipe's corpora (their training splits)."""

    train: Literal["bpe"]
    """The algorithm."""
    vocab_size: Count = 2048
    """Number of tokens, the 256 bytes and the special tokens included."""
    corpora: tuple[str, ...] | None = None
    """Corpora to train on; by default all that the recipe trains on."""
