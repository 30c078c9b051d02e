"""Standard mixture-of-experts checkpoints as mixtures of ours: the reverse of an export.

Experts that are equal byte by byte in every layer are one expert in several slots, as they were before `--expand` wrote them
out; what was paid for in disk is got back.

Shapes: E experts as written, S slots, U distinct experts, H hidden.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from coterie.errors import RequestError
from coterie.mixtures.export.export_formats import FORMATS, Format
from coterie.mixtures.layers.layers_settings import GateSettings
from coterie.mixtures.layers.merge import mixture_settings
from coterie.mixtures.layers.tensor_shards import Stored, Wanted
from coterie.spec.json_types import Settings

_DENSE = {"mixtral": "mistral", "qwen2_moe": "qwen2", "qwen3_moe": "qwen3", "flex_olmo": "olmo2"}
"""What each format is without its experts. A Llama is a Mistral without a window."""
_OF_EXPERTS = set(
    "num_experts num_local_experts num_experts_per_tok norm_topk_prob output_router_logits router_aux_loss_coef "
    "router_jitter_noise moe_intermediate_size decoder_sparse_step mlp_only_layers "
    "shared_expert_intermediate_size architectures torch_dtype transformers_version".split()
)


def read(folder: Path, tensors: Mapping[str, Stored]) -> tuple[Settings, list[Wanted]]:
    """The configuration of a mixture of ours, and its tensors, from a standard checkpoint.

    Raises:
        RequestError: it holds something that ours does not: fused experts, weights that are not divided by their sum, a
            shared expert that is not zero, dense layers between.
    """
    checkpoint: Settings = json.loads((folder / "config.json").read_text())
    kind = FORMATS[checkpoint["model_type"]]
    if not checkpoint.get("norm_topk_prob", kind.name == "mixtral"):
        raise RequestError(
            "its weights are not divided by their sum, and those of a mixture are",
            where=str(folder / "config.json"),
            expected="norm_topk_prob: true",
            do="keep it as it is",
        )
    E = checkpoint.get("num_experts") or checkpoint["num_local_experts"]
    layers = [f"model.layers.{i}" for i in range(checkpoint["num_hidden_layers"])]
    _check(folder, kind, layers, E, tensors)
    seats = _seats(kind, layers, E, tensors)
    first = {u: e for e, u in reversed(list(enumerate(seats)))}
    wanted, ours = [], {kind.gate(layer) for layer in layers}
    for layer in layers:
        gate = tensors[kind.gate(layer)]
        wanted.append(Wanted(f"model.{layer}.mlp.gate.weight", torch.float32, gate.shape, gate.read))
        for u, e in first.items():
            for matrix in kind.parts:
                tensor = tensors[kind.expert(layer, e, matrix)]
                name = f"model.{layer}.mlp.experts.{u}.{matrix}.weight"
                wanted.append(Wanted(name, tensor.dtype, tensor.shape, tensor.read))
        ours |= {kind.expert(layer, e, matrix) for e in range(E) for matrix in kind.parts}
    rest = {n: t for n, t in tensors.items() if n not in ours and "shared_expert" not in n}
    wanted += [Wanted(f"model.{n}", t.dtype, t.shape, t.read) for n, t in rest.items()]
    text = {k: v for k, v in checkpoint.items() if k not in _OF_EXPERTS} | {"model_type": _DENSE[kind.name]}
    if "moe_intermediate_size" in checkpoint:
        text["intermediate_size"] = checkpoint["moe_intermediate_size"]
    names, tied = [f"expert-{u + 1}" for u in seats], bool(checkpoint.get("tie_word_embeddings", False))
    gates: GateSettings = {"kind": "given", "top_k": checkpoint["num_experts_per_tok"], "bias": False}
    return mixture_settings(text, names, seats, [None] * len(first), gates, tied), wanted


def _check(folder: Path, kind: Format, layers: list[str], E: int, tensors: Mapping[str, Stored]) -> None:
    for layer in layers:
        needed = [kind.gate(layer), *(kind.expert(layer, e, matrix) for e in range(E) for matrix in kind.parts)]
        missing = [name for name in needed if name not in tensors]
        if missing:
            raise RequestError(
                "its experts are not written one tensor each",
                where=str(folder),
                expected=missing[0],
                found=next((n for n in tensors if n.startswith(f"{layer}.") and "expert" in n), "no expert in that layer"),
                do="write it with an older transformers, or with save_original_format",
            )
        down = tensors.get(f"{layer}.mlp.shared_expert.down_proj.weight")
        if down is not None and bool(down.read().any()):
            raise RequestError(
                "it has a shared expert that is not zero, which a mixture cannot hold",
                where=str(folder),
                found=f"{layer}.mlp.shared_expert.down_proj.weight",
                do="keep it as it is",
            )


def _seats(kind: Format, layers: list[str], E: int, tensors: Mapping[str, Stored]) -> list[int]:
    """For each expert as written, the distinct one that it is."""
    numbers: dict[str, int] = {}
    seats = []
    for e in range(E):
        seen = hashlib.sha256()
        for name in (kind.expert(layer, e, matrix) for layer in layers for matrix in kind.parts):
            raw: Any = tensors[name].read().view(-1).view(torch.uint8).numpy()
            seen.update(raw)
        seats.append(numbers.setdefault(seen.hexdigest(), len(numbers)))
    return seats
