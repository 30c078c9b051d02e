"""Features of documents from the frozen base.

Shapes: N blocks, T positions, D documents, H width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.numpy import save_file
from torch import nn

from coterie.corpora.blocks import Blocks
from coterie.models import packed_inputs as packing
from coterie.models.open import open_model
from coterie.progress import bar
from coterie.store import Artifact

TOKENS_AT_ONCE = 4096
"""Positions in one forward pass."""


def write(base: Artifact, blocks: Artifact, where: str, label: str, folder: Path) -> None:
    """See `coterie.growth.features`."""
    source = Blocks.open(blocks)
    mean_DH, tokens_D = of(open_model(base, device=where), source, where, label)
    save_file({"mean": mean_DH.astype(np.float32), "tokens": tokens_D}, folder / "features.safetensors")


@torch.no_grad()
def of(
    model: nn.Module, source: Blocks, where: str = "cpu", label: str = "features"
) -> tuple[Float[np.ndarray, "D H"], np.ndarray]:
    """Mean last hidden state over each document's tokens, and how many tokens that were.

    A document cut into pieces is put together again.
    """
    plain: Any = model
    decoder = getattr(plain, plain.base_model_prefix)
    documents = int(source.document.max()) + 1
    sums: np.ndarray | None = None
    tokens_D = np.zeros(documents, np.int64)
    size, done = max(TOKENS_AT_ONCE // source.ids.shape[1], 1), 0
    with bar(label, int(source.tokens_per_block.sum())) as progress:
        for begin in range(0, len(source), size):
            rows = slice(begin, begin + size)
            ids, position = (torch.from_numpy(a[rows].astype(np.int64)).to(where) for a in (source.ids, source.position))
            hidden_NTH = decoder(**packing.inputs(model, ids, position))[0].double().cpu().numpy()
            there, owner = source.document[rows] >= 0, source.document[rows]
            if sums is None:
                sums = np.zeros((documents, hidden_NTH.shape[-1]))
            np.add.at(sums, owner[there], hidden_NTH[there])
            np.add.at(tokens_D, owner[there], 1)
            done += int(there.sum())
            progress.to(done)
    assert sums is not None
    return sums / np.maximum(tokens_D, 1)[:, None], tokens_D
