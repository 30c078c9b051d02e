"""A mixture's own scores, and who was used where, from the cached scores of its experts.

Shapes: N blocks, T positions, U distinct experts, M counted tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from coterie.mixtures.outputs.cached_scores import routed_nll
from coterie.routing.statistics import Usage
from coterie.store import Artifact


def write(mixture: Artifact, blocks: Artifact, scores: Sequence[Artifact], folder: Path) -> None:
    """Write a mixture's scores; see `coterie.mixtures.routed`."""
    result = routed_nll(mixture, blocks, scores)
    write_routed(blocks, -np.nan_to_num(result.nll), ~np.isnan(result.nll), result.weight, folder)


def write_routed(
    blocks: Artifact, logp_NT1: np.ndarray, answered_NT1: np.ndarray, weight_NT1U: np.ndarray, folder: Path, **more: Any
) -> None:
    """Write the scores of any mixture; ``more`` goes into the facts.

    Args:
        answered_NT1: where some expert may answer at the document's date.
        weight_NT1U: over distinct experts, for predicting each token.
    """
    files = load_file(blocks.file("blocks.safetensors"))
    counted_NT1 = (files["target"][:, 1:] != 0) & answered_NT1
    weight_MU = weight_NT1U[counted_NT1]
    usage = Usage(weight_MU.shape[-1])
    usage.add(torch.from_numpy(weight_MU))
    position_M = files["position"][:, :-1][counted_NT1]
    seen_T = np.bincount(position_M, minlength=1)
    sums_TU = np.stack([np.bincount(position_M, w_M, len(seen_T)) for w_M in weight_MU.T], axis=-1)
    figures = usage.summary()
    facts: dict[str, Any] = {
        "tokens": int(counted_NT1.sum()),
        "nll": float(-logp_NT1[counted_NT1].mean()) if counted_NT1.any() else None,
        **{k: figures[k] for k in ("utilization", "entropy", "confidence") if k in figures},
        "positions": seen_T.tolist(),
        "by_position": (sums_TU / np.maximum(seen_T, 1)[:, None]).round(6).tolist(),
        **more,
    }
    (folder / "facts.json").write_text(json.dumps(facts, sort_keys=True))
    save_file({"logp": logp_NT1, "answered": answered_NT1.astype(np.uint8)}, folder / "scores.safetensors")
