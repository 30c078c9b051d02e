"""A mixture's own scores, and who was used where.

Shapes: N blocks, B of them in a pass, T positions, U distinct experts, M counted tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors.numpy import load_file, save_file
from torch import Tensor

from coterie.corpora.blocks import Blocks
from coterie.experts.training_rows import require_fit
from coterie.mixtures.shared_base import SharedBaseMixture
from coterie.models.logprob import target_logp
from coterie.progress import bar
from coterie.routing.statistics import Usage
from coterie.spec.json_types import Figures
from coterie.store import Artifact

TOKENS_AT_ONCE = 4096
"""Positions in one forward pass."""


def batches(source: Blocks, where: str, label: str) -> Iterator[tuple[slice, Int[Tensor, "B T"], Int[Tensor, "B T"]]]:
    """For one forward pass each: rows of blocks, their tokens and their positions; under a progress bar."""
    size = max(TOKENS_AT_ONCE // source.ids.shape[1], 1)
    with bar(label, int(source.tokens_per_block.sum())) as progress:
        for begin in range(0, len(source), size):
            rows = slice(begin, begin + size)
            ids, position = (torch.from_numpy(a[rows].astype(np.int64)).to(where) for a in (source.ids, source.position))
            yield rows, ids, position
            progress.to(int(source.tokens_per_block[: rows.stop].sum()))


@torch.no_grad()
def write_gated(
    mixture: SharedBaseMixture,
    blocks: Artifact,
    folder: Path,
    sums: torch.dtype,
    where: str,
    label: str,
    *,
    named: bool = False,
) -> None:
    """Run a mixture of parts of one model over blocks, while every gate is listened to, and write its scores.

    The facts also hold, over counted tokens, ``by_layer`` (mean weights at each gate) and ``chosen`` (share of the tokens at
    which an expert's weight is the largest, mean over gates).

    Args:
        sums: precision of these sums.
        named: list the ``gates`` too.
    """
    source, U = Blocks.open(blocks), len(mixture.names)
    require_fit(mixture.inner, source)
    N, T = source.ids.shape
    logp_NT1, weight_NT1U = np.zeros((N, T - 1), np.float32), np.zeros((N, T - 1, U), np.float32)
    gates: list[str] = []
    use_GU, chosen_U = torch.zeros(1, U, dtype=sums), torch.zeros(U, dtype=sums)
    for rows, ids_BT, position_BT in batches(source, where, label):
        with mixture.traced() as trace:
            logp_NT1[rows] = target_logp(mixture.inner, ids_BT, position_BT).cpu()
            gates, gated = list(trace()), trace().values()
            weight_GBTU = torch.stack([mixture.over_experts(one.weight_NS[:, :-1]).cpu() for one in gated])
        weight_NT1U[rows] = weight_GBTU.mean(0)
        weight_GMU = weight_GBTU[:, torch.from_numpy(source.target[rows, 1:] != 0)].to(sums)
        use_GU = use_GU + weight_GMU.sum(1)
        for first_M in weight_GMU.argmax(-1):
            chosen_U += torch.bincount(first_M, minlength=U) / len(gates)
    tokens = max(int((source.target[:, 1:] != 0).sum()), 1)
    more = {"by_layer": (use_GU / tokens).tolist(), "chosen": (chosen_U / tokens).tolist()}
    more |= {"gates": gates} if named else {}
    write_routed(blocks, logp_NT1, np.ones(logp_NT1.shape, bool), weight_NT1U, folder, more)


def write_routed(
    blocks: Artifact,
    logp_NT1: Float[np.ndarray, "N T-1"],
    answered_NT1: Bool[np.ndarray, "N T-1"],
    weight_NT1U: Float[np.ndarray, "N T-1 U"],
    folder: Path,
    more: Figures | None = None,
) -> None:
    """Write a mixture's scores.

    Args:
        answered_NT1: where some expert may answer at the document's date.
        weight_NT1U: over distinct experts, for predicting each token.
        more: facts besides.
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
    facts: Figures = {
        "tokens": int(counted_NT1.sum()),
        "nll": float(-logp_NT1[counted_NT1].mean()) if counted_NT1.any() else None,
        **{k: figures[k] for k in ("utilization", "entropy", "confidence") if k in figures},
        "positions": seen_T.tolist(),
        "by_position": (sums_TU / np.maximum(seen_T, 1)[:, None]).round(6).tolist(),
        **(more or {}),
    }
    (folder / "facts.json").write_text(json.dumps(facts, sort_keys=True))
    save_file({"logp": logp_NT1, "answered": answered_NT1.astype(np.uint8)}, folder / "scores.safetensors")
