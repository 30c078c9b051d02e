"""A layer's feed-forward block with several experts in it: ``sum over experts of w_u f_u(h)``.

Any architecture's own feed-forward module serves as an expert, so nothing here knows about activations. Slots that share an
expert have their weights summed and it runs once; an expert runs only on tokens that give it weight. The price: a loop over
distinct experts instead of one fused product.

Shapes: N tokens, M tokens of one expert, H hidden, S slots, U distinct experts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from coterie.errors import RequestError
from coterie.routing.gates import Gate, Gated, by_expert

_FEED_FORWARD = re.compile(r".*\.\d+\.(mlp|feed_forward|ffn)")


class Block(nn.Module):
    """Experts behind a gate, in the place of a layer's feed-forward block."""

    def __init__(self, gate: Gate, experts: Sequence[nn.Module], slot_to_expert: Sequence[int]) -> None:
        super().__init__()
        self.gate = gate
        self.experts = nn.ModuleList(experts)
        self.seats = list(slot_to_expert)
        self.tracing = False
        """Whether what the gate says is kept."""
        self.gated: Gated | None = None
        """What it said of the last input while tracing."""
        self.only: int | None = None
        """The one expert that answers whatever the gate says, if there is one."""

    def forward(self, x: Float[Tensor, "*N H"]) -> Float[Tensor, "*N H"]:
        if not self.tracing and (self.only is not None or len(self.experts) == 1):
            return self.experts[self.only or 0](x)  # whatever the gate says, the weights sum to 1
        gated = self.gate(x)
        if self.only is not None:
            hot_S = torch.arange(len(self.seats), device=x.device) == self.seats.index(self.only)
            gated = gated._replace(weight_NS=hot_S.to(gated.weight_NS).expand_as(gated.weight_NS))
        if self.tracing:
            self.gated = gated
        x_NH = x.flatten(0, -2)
        seats_S = torch.tensor(self.seats, device=x.device)
        weight_NU = by_expert(gated.weight_NS.flatten(0, -2), seats_S, len(self.experts))
        return self._mix(x_NH, weight_NU).view_as(x)

    def _mix(self, x_NH: Tensor, weight_NU: Tensor) -> Tensor:
        tokens_U = (weight_NU > 0).sum(0).tolist()
        weight_NU = weight_NU.to(x_NH.dtype)
        total_NH = torch.zeros_like(x_NH)
        for u, (expert, tokens) in enumerate(zip(self.experts, tokens_U, strict=True)):
            if tokens == len(x_NH):
                total_NH = total_NH + weight_NU[:, u, None] * expert(x_NH)
            elif tokens:
                rows_M = weight_NU[:, u].nonzero()[:, 0]
                total_NH = total_NH.index_add(0, rows_M, weight_NU[rows_M, u, None] * expert(x_NH[rows_M]))
        return total_NH


def feed_forward(model: nn.Module) -> list[str]:
    """Names of the feed-forward block of each layer, in order.

    Raises:
        RequestError: none is known in this architecture, or it is a mixture of experts already.
    """
    found = [name for name, _ in model.named_modules() if _FEED_FORWARD.fullmatch(name)]
    if not found:
        raise RequestError(
            "no feed-forward block is known in this architecture", where=type(model).__name__, do="mix at outputs"
        )
    if hasattr(model.get_submodule(found[0]), "experts"):
        raise RequestError(
            "the base is a mixture of experts already",
            where=type(model).__name__,
            expected="a dense model",
            do="merge dense experts, or mix at outputs",
        )
    return found


def put(model: nn.Module, name: str, block: nn.Module) -> None:
    """Replace the module of that name."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, block)
