"""A mixture's scores on blocks, and who was used where: one pass, in which every gate is listened to.

Shapes: N blocks, T positions, U distinct experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float

from coterie.corpora.blocks import Blocks
from coterie.experts.training_rows import require_fit
from coterie.mixtures.adapters.adapter_gate_fits import opened
from coterie.mixtures.adapters.adapters_mixture import AdaptersMixture
from coterie.mixtures.score_files import batches, write_routed
from coterie.mixtures.seats import Seat
from coterie.models.logprob import target_logp
from coterie.spec.json_types import Figures
from coterie.store import Artifact


def write(
    mixture: Artifact, seats: Sequence[Seat], base: Artifact, blocks: Artifact, folder: Path, *, where: str, label: str
) -> None:
    """See `coterie.mixtures.adapters.adapters_actions.scores`."""
    model, source = opened(mixture.path, seats, base, where), Blocks.open(blocks)
    require_fit(model.base, source)
    logp_NT1, weight_NT1U, use = run(model, source, where, label)
    write_routed(blocks, logp_NT1, np.ones(logp_NT1.shape, bool), weight_NT1U, folder, use)


@torch.no_grad()
def run(
    model: AdaptersMixture, source: Blocks, where: str = "cpu", label: str = "scores"
) -> tuple[Float[np.ndarray, "N T-1"], Float[np.ndarray, "N T-1 U"], Figures]:
    """log P of each next token; mean over gates of the weights over distinct experts; and over counted tokens ``by_layer``
    (mean weights at each gate, in the order in which they are asked), their ``gates`` by name, and ``chosen`` (share of the
    tokens at which an expert's weight is the largest, mean over gates)."""
    N, T = source.ids.shape
    logp_NT1, weight_NT1U = np.zeros((N, T - 1), np.float32), np.zeros((N, T - 1, len(model.names)), np.float32)
    sums: dict[str, torch.Tensor] = {}
    chosen_U, running = torch.zeros(len(model.names), dtype=torch.float64), model.running
    with model.traced() as trace:
        for rows, ids_BT, position_BT in batches(source, where, label):
            logp_NT1[rows] = target_logp(model.base, ids_BT, position_BT).cpu().numpy()
            gates = trace()
            weight_NT1U[rows] = model.mean_weights(gates)[:, :-1].float().cpu().numpy()
            counted = torch.from_numpy(source.target[rows, 1:].astype(bool))
            for name, gated in gates.items():
                w_MU = gated.weight_NS[:, :-1].cpu()[counted].double()
                whole_U = torch.zeros_like(chosen_U)
                whole_U[running] = w_MU.sum(0)
                sums[name] = sums.get(name, torch.zeros_like(chosen_U)) + whole_U
                first_M = torch.tensor(running)[w_MU.argmax(-1)]
                chosen_U += torch.bincount(first_M, minlength=len(chosen_U)) / len(gates)
    tokens = max(int(source.target[:, 1:].sum()), 1)
    use = {
        "gates": list(sums),
        "by_layer": [(w_U / tokens).tolist() for w_U in sums.values()],
        "chosen": (chosen_U / tokens).tolist(),
    }
    return logp_NT1, weight_NT1U, use
