"""What experts start from: fresh weights, a checkpoint, or fresh weights pre-trained on a mix of the corpora."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from coterie.corpora.tokenizer import TrainedTokenizer
from coterie.experts.train_settings import Train
from coterie.models.architecture import Architecture
from coterie.spec.settings import Count, Shares, Spec


class Pretrain(Spec):
    """Training of the base on a mix of corpora before experts branch."""

    corpora: Shares
    """Corpora and their weights in the mix; a list means equal weights."""
    tokens: Count
    """Token budget."""
    train: Train = Train()
    """Training settings; the budget is `tokens` above."""


class FreshBase(Architecture):
    """Fresh weights of a small architecture."""

    tokenizer: TrainedTokenizer | str = TrainedTokenizer(train="bpe")
    """Train one, or a local directory or hub id."""
    pretrain: Pretrain | None = None
    """Train the base on a mix first; experts that branch from one trained base waste far less."""
    knowledge_until: date | None = None
    """Date at which the base's knowledge ends, when the data does not tell."""

    @property
    def tokenizer_corpora(self) -> tuple[str, ...]:
        """Corpora that are named for its tokenizer."""
        return () if isinstance(self.tokenizer, str) else self.tokenizer.corpora or ()


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

    @property
    def tokenizer_corpora(self) -> tuple[str, ...]:
        return ()


def _which(value: Any) -> str:
    keys = value if isinstance(value, dict) else value.__class__.model_fields
    return "checkpoint" if "path" in keys else "fresh"


Base = Annotated[Annotated[FreshBase, Tag("fresh")] | Annotated[CheckpointBase, Tag("checkpoint")], Discriminator(_which)]
