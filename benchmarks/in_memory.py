"""Models in memory as one mixture at the layers, for measurements and tests.

Shapes: S slots, H hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from coterie.mixtures.layers.gated_block import feed_forward
from coterie.mixtures.layers.layers_mixture import LayersConfig, LayersMixture
from coterie.mixtures.mixture_files import special_tokens


def merged(
    base: PreTrainedModel,
    experts: Mapping[str, PreTrainedModel],
    slots: Sequence[str] | None = None,
    gates: Sequence[Tensor] | None = None,
    *,
    top_k: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> LayersMixture:
    """Models in memory as one mixture: all but the feed-forward blocks is the base's. Weights are copied.

    Args:
        experts: models of the base's architecture and shapes, by name.
        slots: names, repeats allowed; one slot each by default.
        gates: weights [S, H] of each layer's gate; zeros (equal weights) by default.
        top_k: slots kept; all by default.
    """
    names = list(experts)
    special = special_tokens(base.config)
    config = LayersConfig(
        text_config=copy.deepcopy(base.config),
        slots=[{"name": s, "expert": names.index(s)} for s in slots or names],
        experts=[{"name": n, "digest": None} for n in names],
        gate={"kind": "given", "top_k": top_k, "bias": False},
        tie_word_embeddings=base.config.tie_word_embeddings,
        **special,
    )
    mixture: Any = LayersMixture(config)
    mixture.to(base.dtype)
    state = base.state_dict()
    for layer, name in enumerate(feed_forward(base)):
        for key in [k for k in state if k.startswith(f"{name}.")]:
            del state[key]
        state[f"{name}.gate.weight"] = torch.zeros_like(mixture.router[layer].weight) if gates is None else gates[layer]
        for u, expert in enumerate(experts.values()):
            state |= {f"{name}.experts.{u}.{k}": v for k, v in expert.get_submodule(name).state_dict().items()}
    mixture.model.load_state_dict(state, strict=True)
    mixture.tokenizer = tokenizer
    mixture.generation_config.update(**special)
    return mixture.eval()
