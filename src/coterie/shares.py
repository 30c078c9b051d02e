"""Figures about shares: how unevenly something is divided, and what two divisions say about each other. No torch.

Shapes: U experts or parts, G groups.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def gini(share_U: Float[np.ndarray, " U"]) -> float:
    """Mean absolute difference over twice the mean: 0 when all are equal, 1 - 1/U when one has everything."""
    sorted_U = np.sort(np.asarray(share_U, dtype=float))
    U, total = len(sorted_U), sorted_U.sum()
    return float((2 * np.arange(1, U + 1) - U - 1) @ sorted_U / (U * total)) if U and total > 0 else 0.0


def mutual_information(joint_GU: Float[np.ndarray, "G U"]) -> float:
    """I(group; expert) in nats from a table of probabilities."""
    apart_GU = joint_GU.sum(1, keepdims=True) * joint_GU.sum(0, keepdims=True)
    there_GU = joint_GU > 0
    return max(float((joint_GU[there_GU] * np.log(joint_GU[there_GU] / apart_GU[there_GU])).sum()), 0.0)
