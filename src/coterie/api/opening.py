"""`coterie.load`."""

from __future__ import annotations

from pathlib import Path

import torch

from coterie.api.remaking import Remaking
from coterie.mixtures.load import load as open_directory
from coterie.mixtures.mixture import Mixture


def load(
    path: str | Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Mixture:
    """Open a mixture or an expert directory. An expert is the mixture of itself alone: same questions, same answers.

    Args:
        path: what `coterie run` wrote to ``OUT/mixtures/NAME`` or ``OUT/experts/NAME``, or any Hugging Face model directory.
        base: the model a LoRA adapter rests on, where the adapter does not name a directory.
        dtype: of the weights; by default the checkpoint's own where the device multiplies it faster, fp32 elsewhere.
            Routers, sums and log-softmax are in fp32 either way.

    Raises:
        RequestError: no model is there, or it is not whole.
    """
    mixture = open_directory(path, base=base, dtype=dtype, device=device)
    mixture.source = Remaking(Path(path).expanduser())
    return mixture
