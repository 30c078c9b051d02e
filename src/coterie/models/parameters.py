"""Which parameters an expert of each kind trains."""

from __future__ import annotations

import hashlib
import re
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedModel

from coterie.errors import RequestError
from coterie.models.lora_settings import Lora

_FEED_FORWARD = re.compile(r"(^|\.)(mlp|feed_forward|ffn|block_sparse_moe)\.")


def train_only_feed_forward(model: nn.Module) -> None:
    """Kind ``ffn``: the feed-forward blocks move; attention, embeddings, norms and head do not."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(bool(_FEED_FORWARD.search(name)))
    if not any(p.requires_grad for p in model.parameters()):
        raise RequestError(
            "kind ffn: no feed-forward block is known in this architecture",
            where=type(model).__name__,
            do="use kind full or lora",
        )


def add_adapter(model: PreTrainedModel, lora: Lora) -> PreTrainedModel:
    """Kind ``lora``: a fresh adapter (B is zero: at first it changes nothing) on the frozen model.

    The adapter's name is fixed: PEFT loses the weights of adapters named by digits when it saves them.
    """
    from peft import LoraConfig, get_peft_model

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    try:
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.r,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT computes with any number
            lora_dropout=lora.dropout,
            target_modules=targets,
        )
        return cast(PreTrainedModel, get_peft_model(model, config))  # PEFT passes on what a model of transformers has
    except ValueError as error:
        raise no_layers(lora.targets) from error


def no_layers(targets: str | tuple[str, ...]) -> RequestError:
    return RequestError(
        "the adapter finds none of its layers",
        where="lora.targets",
        found=str(targets),
        expected="names of linear layers",
        do="use all-linear, or names such as q_proj",
    )


def shape_of_adapter(model: PreTrainedModel) -> tuple[int, float]:
    """Rank and alpha of the adapter that a model rests under."""
    from peft import LoraConfig, PeftModel

    config = cast(PeftModel, model).peft_config["default"]
    assert isinstance(config, LoraConfig)
    return config.r, config.lora_alpha


def fingerprints(model: nn.Module) -> dict[str, str]:
    """A digest of the bytes of each parameter."""
    return {name: _fingerprint(parameter) for name, parameter in model.named_parameters()}


def _fingerprint(parameter: torch.Tensor) -> str:
    raw = parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.blake2b(raw.data, digest_size=16).hexdigest()


def count(model: nn.Module, *, trained: bool = False) -> int:
    """Number of parameters, tied ones once; with ``trained`` only those that move."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trained)
