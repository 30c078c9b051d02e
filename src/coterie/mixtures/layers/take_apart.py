"""The reverse of a merge: each expert of a mixture inside the layers as a whole model again."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from coterie.mixtures.layers.gated_block import Block
from coterie.mixtures.layers.layers_mixture import LayersMixture


def expert_of(mixture: LayersMixture, number: int) -> PreTrainedModel:
    """The shared part with the feed-forward blocks of one distinct expert, as a model of the base's own architecture.
    Nothing is copied."""
    blocks = [name for name, module in mixture.model.named_modules() if isinstance(module, Block)]
    state = {}
    for name, tensor in mixture.model.state_dict().items():
        block = next((b for b in blocks if name.startswith(f"{b}.")), None)
        if block is None:
            state[name] = tensor
        elif name.startswith(own := f"{block}.experts.{number}."):
            state[f"{block}.{name.removeprefix(own)}"] = tensor
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(mixture.config.text_config, dtype=mixture.dtype)
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    return model
