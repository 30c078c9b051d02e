"""Half precision: autocast in training, whole mixtures in bf16."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.mixtures.adapters.cases import adapter, base, config, ids, mixture

from coterie.mixtures.adapters.adapters_mixture import AdaptersMixture
from coterie.mixtures.adapters.joint_training import Loss


@pytest.mark.parametrize("router", [{}, {"top_k": 1}, {"scope": "model", "reads": "prefix"}])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_autocast_gives_nearly_the_same_loss_and_gradients_in_fp32(architecture: str, router: dict[str, Any]) -> None:
    losses = []
    for enabled in (False, True):
        made = mixture(architecture, (2, 3), seed=3, calm=True, **router).trainable(None, router=True)
        tokens = torch.randint(3, 61, (4, 12), generator=torch.Generator().manual_seed(0))
        data = {"input_ids": tokens, "labels": tokens, "position_ids": torch.arange(12).expand(4, 12)}
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = Loss({"balance": 0.01})(made, data, torch.tensor(44))
        loss.backward()
        losses.append(loss.item())
        for name, parameter in made.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert parameter.grad.dtype == torch.float32
                assert torch.isfinite(parameter.grad).all()
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_mixture_in_bf16_generates() -> None:
    model = base(calm=True).bfloat16()
    experts = [adapter(model, 2, seed=u) for u in range(9)]
    made = AdaptersMixture(config(9, top_k=1), model, experts)
    made.set_gates({n: torch.randn(9, h) for n, h in made.layout.sizes.items()})
    assert made.generate(ids(2, 5), max_new_tokens=4, pad_token_id=0).shape == (2, 9)
    torch.testing.assert_close(made.weights(ids(1, 4)).sum(-1), torch.ones(1, 4), atol=1e-3, rtol=1e-3)
