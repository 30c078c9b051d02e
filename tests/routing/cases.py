"""Random routers and inputs."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from coterie.routing.output_routers import Linear, Mlp, Posterior, Uniform
from coterie.routing.routers import Router, build

V = 20
FEATURES = [("tokens",), ("posterior",), ("tokens", "posterior")]
RECIPES = [
    Uniform(),
    Posterior(),
    Posterior(fit=False, decay=0.8, tau=2.0),
    *(Linear(kind="linear", features=f) for f in FEATURES),
    *(Mlp(kind="mlp", hidden=4, features=f) for f in FEATURES),
]

recipes = st.sampled_from(RECIPES)


def random_router(recipe: object, experts: int, vocab_size: int = V) -> Router:
    """Of any parameters, not only those it starts with."""
    router = build(recipe.model_dump(mode="json"), experts, vocab_size)  # type: ignore[attr-defined]
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.add_(torch.randn_like(parameter))
    return router


def random_inputs(B: int, T: int, U: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, position, eligible, evidence (0 at first tokens)."""
    eligible_B1U = torch.rand(B, 1, U) < 0.7
    eligible_B1U[:, :, 0] = True
    evidence_BTU = -3 * torch.rand(B, T, U)
    evidence_BTU[:, 0] = 0
    return torch.randint(0, V, (B, T)), torch.arange(T).expand(B, T), eligible_B1U, evidence_BTU
