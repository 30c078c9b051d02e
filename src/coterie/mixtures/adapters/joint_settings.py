"""Experts and router trained together: the settings."""

from __future__ import annotations

from pydantic import model_validator

from coterie.experts.train_settings import Train
from coterie.models.lora_settings import Lora
from coterie.spec.settings import Count, Share, Shares, Spec


class Joint(Spec):
    """Experts and router trained together, from fresh adapters."""

    experts: Count
    """How many."""
    lora: Lora = Lora()
    """Shape of each."""
    corpora: Shares
    """Corpora (their training splits) and their shares of the tokens; a list means equal shares."""
    tokens: Count
    """Token budget."""
    dense: Share = 0.2
    """Share of the steps, from the first, in which all experts answer, so that each learns something before `top_k` or
    `top_p` selects (experts in training collaborate, mature ones are delegated to)."""
    train: Train = Train()
    """Training settings; the budget is `tokens` above."""

    @model_validator(mode="after")
    def _one_budget(self) -> Joint:
        if self.train.tokens is not None or self.train.epochs is not None:
            raise ValueError("the budget is joint.tokens: remove tokens and epochs from joint.train")
        self.train.refuse("joint.train", "early_stopping", "snapshots")
        if not self.corpora:
            raise ValueError("joint training needs at least one corpus")
        return self
