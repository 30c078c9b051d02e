"""A mixture inside the layers on disk, and what its verbs do once it is known that the store lacks a result.

    DIR/config.json                    base's configuration, slots, distinct experts, gate
    DIR/model.safetensors.index.json   which file holds which tensor
    DIR/gates.safetensors              the gates, [S, H] a layer
    DIR/experts/model-*.safetensors    everything else: each distinct expert once
    DIR/generation_config.json, tokenizer files

Stock `from_pretrained` follows the index. In the store the experts are an artifact of their own, so that mixtures that
differ in nothing but their gates share it; `save_pretrained` from memory writes one plain folder, which opens as well.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from torch import Tensor

from coterie.errors import RequestError
from coterie.mixtures.layers import layer_gate_fits as fitting
from coterie.mixtures.layers.expert_weights import Directory
from coterie.mixtures.layers.gated_block import feed_forward
from coterie.mixtures.layers.layer_gates import ClosedFormGate, LayerGate
from coterie.mixtures.layers.layers_mixture import LayersMixture
from coterie.mixtures.layers.layers_settings import MergedModel
from coterie.mixtures.layers.merge import Merge, describe, gate_names
from coterie.mixtures.layers.tensor_shards import INDEX, SHARD, Stored, index, like, require_room, stored, write
from coterie.mixtures.mixture_files import SPECIAL_TOKENS
from coterie.mixtures.score_files import write_gated
from coterie.models.checkpoint import weight_files
from coterie.models.device import Precision
from coterie.models.initialise import copy_tokenizer
from coterie.models.quiet import quiet
from coterie.models.weight_precision import torch_dtype
from coterie.spec.json_types import Figures, Settings
from coterie.store import Artifact
from coterie.store.admit import shards_of

GATES = "gates.safetensors"


def write_experts(merge: Merge, folder: Path, shard_bytes: int = SHARD) -> Figures:
    """Write all tensors but the gates; returns their figures.

    Raises:
        RequestError: the experts do not go together, or the disk is too small.
    """
    differences = merge.check()
    wanted = list(merge.wanted())
    total = sum(t.bytes for t in wanted)
    require_room(folder, total)
    write(folder, wanted, shard_bytes, ahead=merge.ahead, scratch=merge.scratch)
    return {"bytes": total, "tensors": len(wanted), "shared": merge.shared, "difference": differences}


def write_gates(gates: Mapping[str, Tensor], folder: Path) -> None:
    """Write gates by name, as `gate_names` gives them, in fp32."""
    write(folder, [like(tensor, name, torch.float32) for name, tensor in gates.items()], SHARD, "gates")


def write_rest(
    settings: Settings, tokenizer: Path, experts: Mapping[str, Stored], gates: Mapping[str, Tensor], folder: Path
) -> None:
    """Write configuration, gates, index and tokenizer: all but the experts, which lie in ``experts/``."""
    write_gates(gates, folder)
    of_gates = stored([folder / GATES])
    where = {name: f"experts/{tensor.file.name}" for name, tensor in experts.items()} | dict.fromkeys(of_gates, GATES)
    size = sum(t.bytes for t in (*experts.values(), *of_gates.values()))
    (folder / INDEX).write_text(index(where, size))
    (folder / "config.json").write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
    special = {k: settings[k] for k in SPECIAL_TOKENS if settings[k] is not None}
    (folder / "generation_config.json").write_text(json.dumps(special, indent=1, sort_keys=True) + "\n")
    copy_tokenizer(tokenizer, folder)


def tensors_of(folder: Path) -> dict[str, Stored]:
    """Every tensor of a mixture directory.

    Raises:
        RequestError: a file is missing, damaged, or outside the directory.
    """
    if not (folder / INDEX).is_file():
        return stored(weight_files(folder))
    names = sorted(set(shards_of(folder / INDEX).values()))
    for name in names:
        if not (folder / name).is_file():
            raise RequestError("a part of the weights is missing", where=str(folder / name), expected="named in the index")
    return stored([folder / name for name in names])


def gates_of(model: MergedModel) -> dict[str, Tensor]:
    """The gates' tensors; zeros where none are given."""
    if model.gates is not None:
        return load_file(model.gates.file("gates.safetensors"))
    return {name: torch.zeros(shape) for name, shape in _shapes(model).items()}


def _shapes(model: MergedModel) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of the gates."""
    base, S, bias = Directory(model.base.path), len(model.settings["seats"]), model.settings["gate"]["bias"]
    H = base.config.hidden_size
    return {n: (S, H) if n.endswith("weight") else (S,) for n in gate_names(feed_forward(base.skeleton), bias)}


def write_merged(model: MergedModel, folder: Path) -> None:
    """All of a merged model but its experts, which are to lie in ``experts/``."""
    experts = stored(sorted(model.experts.path.glob("model*.safetensors")))
    dtype = next(t.dtype for name, t in experts.items() if ".experts." in name)
    settings = describe(Directory(model.base.path), **model.settings, dtype=dtype)
    write_rest(settings, model.tokenizer.path, experts, gates_of(model), folder)


def opened(model: MergedModel, where: str, precision: Precision = "fp32") -> LayersMixture:
    """The model in memory."""
    with tempfile.TemporaryDirectory() as temp, quiet():
        (Path(temp) / "experts").symlink_to(model.experts.path.absolute())
        write_merged(model, Path(temp))
        return LayersMixture.from_pretrained(temp, dtype=torch_dtype(precision), device_map=where)


def make_gates(
    model: MergedModel,
    gate: LayerGate,
    folder: Path,
    *,
    prompts: Sequence[Sequence[str]],
    blocks: Sequence[Artifact],
    seed: int,
    where: str,
    precision: Precision,
) -> None:
    """Make gates without training; see `coterie.mixtures.layers.layers_place.LayersPlace`."""
    if not isinstance(gate, ClosedFormGate):
        assert gate.initial_std is not None
        drawn = fitting.draw(_shapes(model), gate.initial_std, seed)
        write_gates({n: torch.zeros_like(t) if n.endswith("bias") else t for n, t in drawn.items()}, folder)
        return
    mixture, U = opened(model, where, precision), len(model.settings["digests"])
    H = mixture.config.text_config.hidden_size
    if prompts:
        texts, context = dict(enumerate(prompts)), mixture.config.max_position_embeddings
        data = partial(fitting.prompts, texts, model.tokenizer.path, context)
    else:
        share = None if gate.most_tokens is None else max(gate.most_tokens // U, 1)
        data = partial(fitting.texts, blocks, range(U), share)
    fitting.fit(mixture, data, partial(gate.sums, H, U), gate.solve, features=gate.features, temperature=gate.temperature)
    write_gates(fitting.gates(mixture), folder)


def write_scores(
    model: MergedModel, blocks: Artifact, folder: Path, *, only: int | None, label: str, where: str, precision: Precision
) -> None:
    """Run a mixture over blocks; see `coterie.mixtures.score_files.write_gated`."""
    mixture = opened(model, where, precision)
    with nullcontext() if only is None else mixture.only(only):
        write_gated(mixture, blocks, folder, torch.float32, where, label)


def exactness(own: Artifact, alone: Artifact, blocks: Artifact) -> dict[str, float]:
    """What a rule for the shared part costs one expert: its loss by itself, and as the only one in the mixture."""
    counted = load_arrays(blocks.file("blocks.safetensors"))["target"][:, 1:] != 0
    before, after = (load_arrays(s.file("scores.safetensors"))["logp"][counted] for s in (own, alone))
    return {
        "nll_alone": float(-before.mean(dtype=np.float64)),
        "nll_merged": float(-after.mean(dtype=np.float64)),
        "largest_difference": float(np.abs(before - after).max()),
    }
