"""Which experts are alike, and two of them as one: on their updates ``scale B A``, which are never multiplied out.

Shapes: R ranks, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.errors import RequestError
from coterie.models.lora_files import Adapter
from coterie.models.stack_blocks import Factors


def inner(one: Adapter, two: Adapter) -> float:
    """Sum over linears of the inner product of two experts' updates: trace((B1 A1)' B2 A2), in small matrices."""
    total = 0.0
    for name in one.keys() & two.keys():
        (A1, B1, s1), (A2, B2, s2) = one[name], two[name]
        total += s1 * s2 * float(((B1.double().T @ B2.double()) * (A1.double() @ A2.double().T)).sum())
    return total


def similarities(experts: Mapping[str, Adapter]) -> dict[tuple[str, str], float]:
    """Cosine of every pair's updates: 1 equal, 0 unrelated."""
    names = list(experts)
    norm = {name: max(inner(experts[name], experts[name]), 0.0) ** 0.5 for name in names}
    found = {}
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            size = norm[a] * norm[b]
            found[a, b] = inner(experts[a], experts[b]) / size if size else 0.0
    return found


def merged(one: Adapter, two: Adapter, share: float = 0.5, rank: int | None = None) -> tuple[Adapter, float]:
    """The best update of a rank for ``share * one + (1 - share) * two``, and how much of it was lost.

    Args:
        rank: of the result; by default the larger of both, at each linear.

    Returns:
        the expert, and the share of the weighted sum's squared norm that the rank could not hold.
    """
    if not 0 <= share <= 1:
        raise RequestError("a share lies between 0 and 1", found=str(share))
    result: Adapter = {}
    lost = total = 0.0
    for name in dict.fromkeys([*one, *two]):
        parts = [(w, a[name]) for w, a in ((share, one), (1 - share, two)) if name in a]
        A_RI = torch.cat([f.A_RI.double() for _, f in parts])
        B_OR = torch.cat([w * f.scale * f.B_OR.double() for w, f in parts], 1)
        r = rank or max(f.A_RI.shape[0] for _, f in parts)
        factors, kept, all_ = _truncated(A_RI, B_OR, r)
        result[name] = factors
        lost, total = lost + all_ - kept, total + all_
    return result, lost / total if total else 0.0


def _truncated(A_RI: Tensor, B_OR: Tensor, r: int) -> tuple[Factors, float, float]:
    """``B A`` at rank r, by the singular vectors of the small matrix between two orthonormal bases."""
    left_OQ, up_QR = torch.linalg.qr(B_OR)
    right_IP, down_PR = torch.linalg.qr(A_RI.T)
    U, S, Vh = torch.linalg.svd(up_QR @ down_PR.T)
    root = S[:r].sqrt()
    A = (root[:, None] * (Vh[:r] @ right_IP.T)).float()
    B = ((left_OQ @ U[:, :r]) * root).float()
    return Factors(A.contiguous(), B.contiguous(), 1.0), float(S[:r].square().sum()), float(S.square().sum())
