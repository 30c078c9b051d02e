"""Arrow: a gate from the adapters themselves (Ostapenko et al. 2024, arXiv 2405.11157).

An update ``B A`` moves inputs most along its first right singular vector. That direction stands for the expert: a token goes
where its input's projection on it is largest, whatever the sign. Nothing is fitted and no data is read.

Shapes: R ranks, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def prototype(factors: Sequence[tuple[Float[Tensor, "R I"], Float[Tensor, "O R"]]]) -> Float[Tensor, " I"]:
    """First right singular vector of all ``B A`` that read one input, one above the other; exact, unit length, fp32.

    ``B = Q S`` with orthonormal columns Q, so the few rows of ``S A`` have the same right singular vectors.
    An update of nothing has no direction and gives zeros. The sign is fixed by the largest entry.
    """
    rows_RI = torch.cat([torch.linalg.qr(B_OR.detach().double())[1] @ A_RI.detach().double() for A_RI, B_OR in factors])
    if not rows_RI.any():
        return torch.zeros(rows_RI.shape[1])
    first_I: Tensor = torch.linalg.svd(rows_RI, full_matrices=False).Vh[0]
    return (first_I * first_I[first_I.abs().argmax()].sign()).float()
