"""Small mixtures inside the layers, of every kind of base that is supported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from benchmarks.in_memory import merged
from tests.models.architectures import VOCABULARY, make
from transformers import PreTrainedModel

from coterie.mixtures.layers.gated_block import feed_forward
from coterie.mixtures.layers.layers_mixture import LayersMixture

KINDS = ("llama", "mistral", "qwen2", "qwen3", "olmo2", "gpt2")


def base(kind: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(seed)
    return make(kind, **changes)


def expert(of: PreTrainedModel, seed: int) -> PreTrainedModel:
    """A copy whose feed-forward blocks differ: an expert of kind ffn."""
    torch.manual_seed(seed)
    copy = type(of)(of.config).eval()
    copy.load_state_dict(of.state_dict())
    with torch.no_grad():
        for name in feed_forward(copy):
            for parameter in copy.get_submodule(name).parameters():
                parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter))
    return copy


def mixture(
    kind: str, seats: Sequence[int] = (0, 1, 1, 2), top_k: int | None = None, seed: int = 0, **changes: Any
) -> tuple[LayersMixture, list[PreTrainedModel]]:
    """Slots over distinct experts, with random gates; and the experts."""
    start = base(kind, seed, **changes)
    experts = [expert(start, seed * 10 + u + 1) for u in range(max(seats) + 1)]
    names = [f"e{u}" for u in range(len(experts))]
    made = merged(start, dict(zip(names, experts, strict=True)), [names[u] for u in seats], top_k=top_k)
    torch.manual_seed(seed)
    for gate in made.router:
        torch.nn.init.normal_(gate.weight, std=0.3)
    return made, experts


def ids(B: int = 2, T: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (B, T), generator=torch.Generator().manual_seed(seed))


def logp(model: PreTrainedModel, ids_BT: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(ids_BT).logits.float().log_softmax(-1)
