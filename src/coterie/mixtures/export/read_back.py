"""How far what was written is from what it was written from: the largest difference of any log-probability.

Both are opened one after the other, in fp32, so that at most one is in memory.

Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PretrainedConfig

from coterie.mixtures.layers.layers_mixture import LayersMixture
from coterie.models.quiet import quiet
from coterie.models.strict_loading import load_strictly

ROWS, LENGTH = 4, 64


def probe(config: PretrainedConfig) -> Tensor:
    """Tokens to ask both about: random ones, the same for the same vocabulary. [B, T]"""
    text = config.get_text_config()
    T = min(LENGTH, text.max_position_embeddings)
    return torch.randint(0, text.vocab_size, (ROWS, T), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def log_probs(model: nn.Module, ids_BT: Tensor) -> Float[Tensor, "B T V"]:
    """In nats."""
    return model(input_ids=ids_BT, use_cache=False).logits.float().log_softmax(-1)


def largest(one: Path, two: Path) -> float:
    """Between two model directories; both must open strictly."""
    found = []
    for folder in (one, two):
        model = load_strictly(folder, dtype=torch.float32)
        found.append(log_probs(model, probe(model.config)))
        del model
    return float((found[0] - found[1]).abs().max())


def of_folding(folder: Path, experts: list[int], gates: Mapping[str, Tensor], top_k: int) -> float:
    """Between a mixture and itself with its slots folded into these experts."""
    with quiet():
        model: Any = LayersMixture.from_pretrained(folder, dtype=torch.float32)
    ids_BT = probe(model.config)
    before = log_probs(model, ids_BT)
    for name, rows in gates.items():
        block = model.model.get_submodule(name)
        block.gate.weight = torch.nn.Parameter(rows)
        block.gate.top_k = top_k if top_k < len(rows) else None
        block.seats = experts
    return float((log_probs(model, ids_BT) - before).abs().max())
