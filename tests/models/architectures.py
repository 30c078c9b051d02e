"""Small random models of several architectures."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

torch.set_num_threads(1)
VOCABULARY = 61

SHAPES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "mistral": {"sliding_window": 5},
    "gemma2": {"sliding_window": 5, "final_logit_softcapping": 0.5},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 3.0},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}
"""What differs from the common shape; the scales are far from 1, so that leaving one out shows."""


def make(architecture: str, **changes: object) -> PreTrainedModel:
    shape = {"vocab_size": VOCABULARY, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
    if architecture != "gpt2":
        shape |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}
        if architecture != "opt":
            shape |= {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8}
    config = AutoConfig.for_model(architecture, **(shape | SHAPES.get(architecture, {}) | changes))
    try:
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    except ValueError:
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # far from the small numbers of fresh weights, where every function is nearly linear
    return model.eval()
