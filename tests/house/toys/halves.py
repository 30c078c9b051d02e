"""Toy gates in one file, one a place: the ridge regression of the first half of the features alone."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from coterie.mixtures.adapters import adapter_routers
from coterie.mixtures.layers import layer_gates
from coterie.routing.gates import Centroids, Ridge


class HalvesAtLayers(layer_gates.ClosedFormGate):
    """Ridge regression in closed form, blind to the second half of the features."""

    reads_expert_data = True

    kind: Literal["halves"] = "halves"
    """The router."""

    def sums(self, hidden: int, experts: int) -> Ridge:
        return Ridge(hidden, experts)

    def solve(self, sums: Ridge | Centroids) -> tuple[Tensor, Tensor]:
        weight_UH, bias_U = sums.solve(intercept=self.bias)
        return blind(weight_UH), bias_U


class HalvesAtAdapters(adapter_routers.ClosedFormGate):
    """Ridge regression in closed form, blind to the second half of the features."""

    kind: Literal["halves"] = "halves"
    """The router."""

    def solve(self, sums: Ridge) -> Tensor:
        return blind(sums.solve(intercept=False)[0])


def blind(weight_UH: Tensor) -> Tensor:
    half = torch.arange(weight_UH.shape[1]) < weight_UH.shape[1] // 2
    return weight_UH * half
