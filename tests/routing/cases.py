"""Random routers and inputs."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from coterie.routing.output_routers import OutputRouter
from coterie.routing.routers import RouterModule

V = 20
RECIPES = [kind.model_validate(settings) for kind in OutputRouter.members() for settings in kind.examples]
"""Every kind that there is, with the settings that it calls worth trying."""

recipes = st.sampled_from(RECIPES)


def name(recipe: OutputRouter) -> str:
    """Of a case."""
    return "-".join([recipe.kind, *getattr(recipe, "features", ())])


def random_router(recipe: OutputRouter, experts: int, vocab_size: int = V) -> RouterModule:
    """Of any parameters, not only those it starts with."""
    router = recipe.build(experts, vocab_size)
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
