"""A toy router in one file: prefers the expert that liked the last token best, by a fitted scale."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from coterie.routing.output_routers import FittedRouter
from coterie.routing.routers import RouterModule, State


class Recency(FittedRouter):
    """Weights from how likely each expert found the last token."""

    paper: ClassVar[str | None] = "none: a toy"
    examples = ({"epochs": 2}, {"epochs": 2, "start": 0.5})

    kind: Literal["recency"] = "recency"
    """The router."""
    start: float = 0.1
    """Scale before it is fitted."""

    def module(self, experts: int, vocab_size: int) -> RouterModule:
        return RecencyModule(experts, self.start)


class RecencyModule(RouterModule):
    needs_evidence = True

    def __init__(self, experts: int, start: float) -> None:
        super().__init__(experts)
        self.scale = nn.Parameter(torch.tensor(start))

    def forward(
        self,
        ids_BT: Tensor,
        position_BT: Tensor,
        eligible_BTU: Tensor,
        evidence_BTU: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        assert evidence_BTU is not None
        return self.scale * torch.where(eligible_BTU, evidence_BTU, 0.0).clamp_min(-20.0), {}
