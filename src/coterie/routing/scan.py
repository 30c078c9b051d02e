"""Running sums over the prefix of each document, the one sequential thing a router needs.

Log-step doubling (Hillis and Steele 1986): after step k, y_t holds the last 2^k terms, so ceil(log2 T) passes over the
tensor replace a loop over T. Every addend is a real term of the sum: documents that are packed into one row are kept apart
by their positions, not by subtracting one document's sum from another's, so nothing cancels. The price is a factor log2(T)
in additions, small against one expert's forward pass.

Shapes: B rows, T positions, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def decayed_sum(
    x_BTD: Float[Tensor, "B T D"],
    position_BT: Int[Tensor, "B T"],
    decay: float | Float[Tensor, "..."] = 1.0,
    carry_BD: Float[Tensor, "B D"] | None = None,
) -> Float[Tensor, "B T D"]:
    """``y_t = x_t + decay * y_{t-1}``, starting afresh wherever ``position`` is 0. Differentiable in ``x`` and ``decay``.

    Args:
        position_BT: step number inside the document; rises by 1 until it restarts at 0.
        decay: in [0, 1], a number or one value for each channel.
        carry_BD: ``y`` just before the first position, for rows that go on from there.
    """
    T = x_BTD.shape[1]
    index_T = torch.arange(T, device=x_BTD.device)
    reach_BT = torch.minimum(position_BT, index_T)  # how many earlier terms lie in this row and this document
    y_BTD, step = x_BTD, 1
    while step < T:
        earlier_BTD = F.pad(y_BTD[:, :-step], (0, 0, step, 0))
        y_BTD = y_BTD + decay**step * earlier_BTD * (reach_BT >= step)[..., None]
        step *= 2
    if carry_BD is not None:
        goes_on_BT1 = (position_BT > index_T)[..., None]
        if isinstance(decay, Tensor):
            power_T1 = decay ** (index_T[:, None] + 1)
        else:
            power_T1 = torch.pow(decay, (index_T[:, None] + 1).to(x_BTD.dtype))
        y_BTD = y_BTD + goes_on_BT1 * power_T1 * carry_BD[:, None]
    return y_BTD
