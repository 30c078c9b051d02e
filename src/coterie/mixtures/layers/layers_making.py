"""What the verbs of mixtures inside the layers do once it is known that the store lacks a result.

Shapes: N blocks, B rows, T positions (T-1 of them predict), S slots, U distinct experts, L layers, M counted tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from torch import Tensor

from coterie.mixtures.layers import layer_gate_fits as fitting
from coterie.mixtures.layers import layers_files as files
from coterie.mixtures.layers.expert_weights import Directory
from coterie.mixtures.layers.gated_block import feed_forward
from coterie.mixtures.layers.layer_gates import ClosedFormGate, LayerGate
from coterie.mixtures.layers.layers_mixture import LayersMixture
from coterie.mixtures.layers.merge import describe, gate_names
from coterie.mixtures.layers.merged_model import MergedModel
from coterie.mixtures.layers.tensor_shards import Stored, stored
from coterie.mixtures.score_files import write_gated
from coterie.spec.json_types import Figures, Settings
from coterie.store import Artifact


def configuration(model: MergedModel) -> Settings:
    """The text of the mixture's `config.json`."""
    return describe(Directory(model.base.path), **model.settings)


def experts_of(model: MergedModel) -> dict[str, Stored]:
    return stored(sorted(model.experts.path.glob("model*.safetensors")))


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


def opened(model: MergedModel, where: str) -> LayersMixture:
    """The model in memory, in fp32."""
    return files.open_parts(configuration(model), model.experts.path, gates_of(model), where)


def write_gates(
    model: MergedModel,
    gate: LayerGate,
    folder: Path,
    *,
    prompts: Sequence[Sequence[str]],
    blocks: Sequence[Artifact],
    seed: int,
    where: str,
) -> None:
    """Make gates without training; see `coterie.mixtures.layers.layers_actions.fit`."""
    if not isinstance(gate, ClosedFormGate):
        assert gate.initial_std is not None
        drawn = fitting.draw(_shapes(model), gate.initial_std, seed)
        files.write_gates({n: torch.zeros_like(t) if n.endswith("bias") else t for n, t in drawn.items()}, folder)
        return
    mixture, U = opened(model, where), len(model.settings["digests"])
    H = mixture.config.text_config.hidden_size
    if prompts:
        texts, context = dict(enumerate(prompts)), mixture.config.max_position_embeddings
        data = partial(fitting.prompts, texts, model.tokenizer.path, context)
    else:
        share = None if gate.most_tokens is None else max(gate.most_tokens // U, 1)
        data = partial(fitting.texts, blocks, range(U), share)
    fitting.fit(mixture, data, partial(gate.sums, H, U), gate.solve, features=gate.features, temperature=gate.temperature)
    files.write_gates(fitting.gates(mixture), folder)


def write_scores(model: MergedModel, blocks: Artifact, folder: Path, *, only: int | None, label: str, where: str) -> None:
    """Run a mixture over blocks; see `coterie.mixtures.layers.layers_actions.score`."""
    mixture = opened(model, where)
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


def write_mixture(model: MergedModel, figures: Figures, folder: Path) -> None:
    """Write all of a mixture but its experts."""
    files.write_rest(configuration(model), model.tokenizer.path, experts_of(model), gates_of(model), folder)
    (folder / "facts.json").write_text(json.dumps(figures, sort_keys=True) + "\n")
