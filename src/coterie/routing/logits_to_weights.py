"""From logits to weights: softmax over all eligible experts first, then top-k or top-p, then renormalise.

Selecting after the softmax keeps every weight a share of the same whole and lets gradients reach all eligible logits; a
softmax over one selected logit would be constant. Slots that share an expert are one expert here, with the logarithm of
their number added to its logit: that is exactly the softmax over slots, summed over equal ones.

Shapes: B rows, T positions, U distinct experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def log_softmax(
    logits_BTU: Float[Tensor, "B T U"],
    log_count_U: Float[Tensor, " U"],
    eligible_BTU: Bool[Tensor, "B _ U"],
    temperature: float = 1.0,
) -> Float[Tensor, "B T U"]:
    """Log-weights over the eligible experts; exactly -inf elsewhere, with gradients that stay finite.

    Whatever an ineligible expert's logit is, NaN included, it reaches nothing.
    """
    prior_BTU = logits_BTU / temperature + log_count_U
    return prior_BTU.masked_fill(~eligible_BTU, -torch.inf).log_softmax(-1)


@dataclass(frozen=True)
class Policy:
    """How many experts answer at a position.

    ``top_k`` keeps the experts with the largest weights, ``top_p`` the fewest whose weights sum to it; with both, at most
    ``top_k`` of them. Equal
    weights go to the expert that comes first.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __call__(
        self, logits_BTU: Float[Tensor, "B T U"], log_count_U: Float[Tensor, " U"], eligible_BTU: Bool[Tensor, "B _ U"]
    ) -> Float[Tensor, "B T U"]:
        """Log-weights that sum to 1 over the experts kept, -inf elsewhere."""
        logw_BTU = log_softmax(logits_BTU, log_count_U, eligible_BTU, self.temperature)
        if self.top_k is None and self.top_p is None:
            return logw_BTU
        ranked_BTU, order_BTU = logw_BTU.detach().sort(dim=-1, descending=True, stable=True)
        kept_BTU = torch.ones_like(order_BTU, dtype=torch.bool)
        if self.top_k is not None:
            kept_BTU[..., self.top_k :] = False
        if self.top_p is not None:
            kept_BTU &= ranked_BTU.exp().cumsum(-1) - ranked_BTU.exp() < self.top_p
        kept_BTU = torch.zeros_like(kept_BTU).scatter(-1, order_BTU, kept_BTU)
        return logw_BTU.masked_fill(~kept_BTU, -torch.inf).log_softmax(-1)
