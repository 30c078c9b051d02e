"""A mixture's scores on blocks, and who was used where: one pass, in which every gate is listened to.

Shapes: N blocks, T positions, U distinct experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from coterie.corpora import Blocks
from coterie.experts.data import require_fit
from coterie.mixtures.adapters.fitting import batches, opened
from coterie.mixtures.adapters.model import AdaptersMixture
from coterie.mixtures.usage import write_routed
from coterie.models import target_logp
from coterie.progress import bar
from coterie.store import Artifact

if TYPE_CHECKING:
    from coterie.mixtures.adapters.verbs import Seat


def write(
    mixture: Artifact, seats: Sequence[Seat], base: Artifact, blocks: Artifact, where: str, label: str, folder: Path
) -> None:
    """See `coterie.mixtures.adapters.verbs.scores`."""
    model, source = opened(mixture.path, seats, base, where), Blocks.open(blocks)
    require_fit(model.base, source)
    logp_NT1, weight_NT1U, by_gate = run(model, source, where, label)
    write_routed(blocks, logp_NT1, np.ones(logp_NT1.shape, bool), weight_NT1U, folder, by_gate=by_gate)


@torch.no_grad()
def run(
    model: AdaptersMixture, source: Blocks, where: str = "cpu", label: str = "scores"
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """log P of each next token [N, T-1], mean over gates of the weights over distinct experts [N, T-1, U], and each gate's
    own mean weights over counted tokens, by name."""
    N, T = source.ids.shape
    logp_NT1, weight_NT1U = np.zeros((N, T - 1), np.float32), np.zeros((N, T - 1, len(model.experts)), np.float32)
    sums: dict[str, torch.Tensor] = {}
    done = 0
    with model.traced() as trace, bar(label, int(source.tokens_per_block.sum())) as progress:
        for rows, given in batches(model, source, where):
            logp_NT1[rows] = target_logp(model.base, given["input_ids"], given["position_ids"]).cpu().numpy()
            said = trace()
            weight_NT1U[rows] = model.mean_weights(said)[:, :-1].float().cpu().numpy()
            counted = torch.from_numpy(source.target[rows, 1:].astype(bool))
            for gate, gated in said.items():
                w_U = gated.weight_NS[:, :-1].cpu()[counted].double().sum(0)
                sums[gate] = sums.get(gate, torch.zeros_like(w_U)) + w_U
            done += int(source.tokens_per_block[rows].sum())
            progress.to(done)
    shares = {gate: [round(w, 6) for w in (w_U / w_U.sum().clamp_min(1e-30)).tolist()] for gate, w_U in sums.items()}
    return logp_NT1, weight_NT1U, shares
