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
from coterie.mixtures.score_files import batches
from coterie.models import packed_inputs as packing
from coterie.models.open import open_model
from coterie.store import Artifact


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
    sums_DH = np.zeros((documents, decoder.config.hidden_size))
    tokens_D = np.zeros(documents, np.int64)
    for rows, ids_NT, position_NT in batches(source, where, label):
        hidden_NTH = decoder(**packing.inputs(model, ids_NT, position_NT))[0].double().cpu().numpy()
        there, owner = source.document[rows] >= 0, source.document[rows]
        np.add.at(sums_DH, owner[there], hidden_NTH[there])
        np.add.at(tokens_D, owner[there], 1)
    return sums_DH / np.maximum(tokens_D, 1)[:, None], tokens_D
