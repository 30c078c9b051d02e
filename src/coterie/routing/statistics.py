"""Who is used, where, and how surely: figures over distinct experts and counted tokens (padding and prompts left out).

Shapes: M tokens, U distinct experts, G groups.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from coterie.shares import gini, mutual_information
from coterie.spec.json_types import Figures


class Usage:
    """Sums over tokens, so that an evaluation of any length fits; `summary` turns them into figures."""

    def __init__(self, experts: int, groups: int = 1) -> None:
        self.weight_GU = torch.zeros(groups, experts, dtype=torch.float64)
        self.entropy, self.confidence = 0.0, 0.0

    def add(self, weight_MU: Float[Tensor, "M U"], group_M: Int[Tensor, " M"] | None = None) -> None:
        """Count tokens with their weights over experts, and the group (domain) each belongs to."""
        weight_MU = weight_MU.double().cpu()
        group_M = torch.zeros(len(weight_MU), dtype=torch.long) if group_M is None else group_M.long().cpu()
        self.weight_GU.index_add_(0, group_M, weight_MU)
        self.entropy += torch.special.entr(weight_MU).sum().item()
        self.confidence += weight_MU.amax(-1).sum().item() if len(weight_MU) else 0.0

    def summary(self) -> Figures:
        """``utilization`` (mean weight of each expert), its ``gini`` (0 even, 1 - 1/U all on one), mean ``entropy`` of the
        weights in nats, ``confidence`` (mean largest weight), ``mutual_information`` of group and expert in nats, and
        ``by_group`` (mean weights in each group)."""
        tokens = self.weight_GU.sum()
        if tokens == 0:
            return {}
        joint_GU = self.weight_GU / tokens
        use_U, share_G = joint_GU.sum(0), joint_GU.sum(1)
        return {
            "utilization": use_U.tolist(),
            "gini": gini(use_U.numpy()),
            "entropy": self.entropy / tokens.item(),
            "confidence": self.confidence / tokens.item(),
            "mutual_information": mutual_information(joint_GU.numpy()),
            "by_group": (joint_GU / share_G.clamp_min(1e-300)[:, None]).tolist(),
        }
