"""Scores: the log-probability an expert gives to each token of each block, computed once and kept.

Routers, mixtures and evaluations read these instead of running the expert: adding one expert scores one expert.

N blocks, B rows of a batch, T positions (T-1 of them are predicted).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from torch import nn

from coterie.corpora.blocks import Blocks
from coterie.experts.training_rows import require_fit
from coterie.models.device import Precision
from coterie.models.logprob import target_logp
from coterie.models.open import open_model
from coterie.models.weight_precision import torch_dtype
from coterie.progress import bar
from coterie.spec.json_types import Figures
from coterie.store import Artifact

TOKENS_AT_ONCE = 4096
"""Positions in one forward pass."""


def write_scores(
    expert: Artifact, blocks: Artifact, base: Artifact | None, where: str, precision: Precision, label: str, folder: Path
) -> Figures:
    """Run the expert over the blocks; see `coterie.experts.expert_actions.score_expert`."""
    source = Blocks.open(blocks)
    model = open_model(expert, base=base, dtype=torch_dtype(precision), device=where)
    require_fit(model, source)
    logp = np.zeros((len(source), source.ids.shape[1] - 1), dtype=np.float32)
    done = 0
    with bar(label, int(source.tokens_per_block.sum())) as progress:
        for rows, logp_BT in _batches(model, source):
            logp[rows] = logp_BT.cpu().numpy()
            done += int(source.tokens_per_block[rows].sum())
            progress.to(done)
    targets = source.target[:, 1:].astype(bool)
    count = int(targets.sum())
    facts = {"tokens": count, "nll": float(-logp[targets].sum(dtype=np.float64) / max(count, 1))}
    save_file({"logp": logp}, folder / "scores.safetensors")
    (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    return {"threads": torch.get_num_threads(), "device": where}


def mean_nll(model: nn.Module, blocks: Blocks) -> float:
    """Nats a target of a model as it stands; its mode is left as it was."""
    training = model.training
    model.eval()
    total, count = 0.0, 0
    for rows, logp_BT in _batches(model, blocks):
        targets_BT = torch.from_numpy(blocks.target[rows, 1:].astype(bool)).to(logp_BT.device)
        total -= float(logp_BT[targets_BT].double().sum())
        count += int(targets_BT.sum())
    model.train(training)
    return total / max(count, 1)


@torch.no_grad()
def _batches(model: nn.Module, blocks: Blocks) -> Iterator[tuple[slice, torch.Tensor]]:
    where = next(model.parameters()).device
    size = max(TOKENS_AT_ONCE // blocks.ids.shape[1], 1)
    for begin in range(0, len(blocks), size):
        rows = slice(begin, begin + size)
        ids, position = (torch.from_numpy(array[rows].astype(np.int64)).to(where) for array in (blocks.ids, blocks.position))
        yield rows, target_logp(model, ids, position)
