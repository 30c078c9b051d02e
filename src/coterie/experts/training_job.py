"""What a training run is, whatever it trains: a model with some of its parameters set trainable, rows, settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from coterie.experts.train_settings import Train
from coterie.experts.training_rows import Loss, Rows
from coterie.models import device

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from coterie.experts.loop import Loop


@dataclass
class Job:
    """One training run; `coterie.experts.training.train_job` runs it.

    Attributes:
        home: where checkpoints go, and where one that is found is gone on from (``store.scratch(action)``).
        output: where tracking backends write.
        loss: None: the model's own, from its labels.
        held_out: nats a token, for early stopping.
        snapshot: called after each of ``train.snapshots`` with the loop and the tokens seen.
        callbacks: of the Trainer, besides those that watch every run.
        sparse: some trainable parameters take no part in some steps; their optimizer state then stays as it is.
    """

    home: Path
    output: Path
    model: nn.Module
    rows: Rows
    train: Train
    where: str
    precision: device.Precision
    seed: int
    label: str
    loss: Loss | None = None
    held_out: Callable[[], float] | None = None
    snapshot: Callable[[Loop, int], None] | None = None
    callbacks: Sequence[TrainerCallback] = ()
    sparse: bool = False
