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
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
) -> Mixture:
    """Open a mixture or an expert directory. An expert is the mixture of itself alone: same questions, same answers.

    Args:
        path: what `coterie run` wrote to ``OUT/mixtures/NAME`` or ``OUT/experts/NAME``, or any Hugging Face model directory.
        base: the model a LoRA adapter rests on, where the adapter does not name a directory.

    Raises:
        RequestError: no model is there, or it is not whole.
    """
    mixture = open_directory(path, base=base, dtype=dtype, device=device)
    mixture.source = Remaking(Path(path).expanduser())
    return mixture
