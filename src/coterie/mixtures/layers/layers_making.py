"""What the verbs of mixtures inside the layers do once it is known that the store lacks a result.

Shapes: N blocks, B rows, T positions (T-1 of them predict), S slots, U distinct experts, L layers, M counted tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file as load_arrays
from safetensors.torch import load_file
from torch import Tensor

from coterie.corpora.blocks import Blocks
from coterie.mixtures.layers import layer_gate_fits as fitting
from coterie.mixtures.layers import layers_files as files
from coterie.mixtures.layers.expert_weights import Directory
from coterie.mixtures.layers.gated_block import feed_forward
from coterie.mixtures.layers.layer_gates import ClosedFormGate, LayerGate
from coterie.mixtures.layers.layers_mixture import LayersMixture
from coterie.mixtures.layers.merge import describe, gate_names
from coterie.mixtures.layers.merged_model import MergedModel
from coterie.mixtures.layers.tensor_shards import Stored, stored
from coterie.mixtures.score_files import batches, write_routed
from coterie.models.logprob import target_logp
from coterie.routing.gates import by_expert
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


@torch.no_grad()
def write_scores(model: MergedModel, blocks: Artifact, folder: Path, *, only: int | None, label: str, where: str) -> None:
    """Run a mixture over blocks; see `coterie.mixtures.layers.layers_actions.score`."""
    mixture, source = opened(model, where), Blocks.open(blocks)
    (N, T), U, L = source.ids.shape, len(mixture.names), len(mixture.blocks)
    logp_NT1, weight_NT1U = np.zeros((N, T - 1), np.float32), np.zeros((N, T - 1, U), np.float32)
    use_LU, chosen_U, counted = torch.zeros(L, U), torch.zeros(U), 0
    for rows, ids_BT, position_BT in batches(source, where, label):
        logp_BT1, weight_LBTU = _scored(mixture, ids_BT, position_BT, only)
        logp_NT1[rows], weight_NT1U[rows] = logp_BT1, weight_LBTU.mean(0)
        counted_BT1 = torch.from_numpy(source.target[rows, 1:] != 0)
        weight_LMU = weight_LBTU[:, counted_BT1]
        use_LU += weight_LMU.sum(1)
        chosen_U += torch.nn.functional.one_hot(weight_LMU.argmax(-1), U).float().mean(0).sum(0)
        counted += int(counted_BT1.sum())
    more = {"by_layer": (use_LU / max(counted, 1)).tolist(), "chosen": (chosen_U / max(counted, 1)).tolist()}
    write_routed(blocks, logp_NT1, np.ones_like(logp_NT1, dtype=bool), weight_NT1U, folder, more)


def _scored(mixture: LayersMixture, ids_BT: Tensor, position_BT: Tensor, only: int | None) -> tuple[Tensor, Tensor]:
    """Log-probabilities [B, T-1] of the tokens, and the weights over experts that predict each [L, B, T-1, U]."""
    (B, T), U = ids_BT.shape, len(mixture.names)
    if only is not None:
        with mixture.only(only):
            logp_BT1 = target_logp(mixture.model, ids_BT, position_BT).cpu()
        hot_U = torch.nn.functional.one_hot(torch.tensor(only), U).float()
        return logp_BT1, hot_U.expand(len(mixture.blocks), B, T - 1, U)
    slots_S = torch.tensor(mixture.config.slot_to_expert, device=ids_BT.device)
    with mixture.traced() as trace:
        logp_BT1 = target_logp(mixture.model, ids_BT, position_BT)
        weights = [by_expert(gated.weight_NS[:, :-1], slots_S, U).cpu() for gated in trace()]
    return logp_BT1.cpu(), torch.stack(weights)


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
