"""Several processes on one training run: how the batch of a step is shared, and who writes.

The recipe says the batch of one step, ``batch_size x accumulation``; however many processes share it, every step sees the
same rows and the same learning rate, so one rank and two ranks train the same expert up to rounding.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

from coterie.errors import RequestError
from coterie.experts.train_settings import Train
from coterie.launch import on_ranks
from coterie.spec.json_types import Figures


def count() -> int:
    """Processes that train together; 1 outside torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    """Whether this process writes what all of them found."""
    return os.environ.get("RANK", "0") == "0"


def batch_size(train: Train) -> int:
    """Sequences of one forward pass on one rank: its share of the recipe's, so that the ranks together see in one pass what
    one rank would; where that is no whole number, at most the recipe's and a divisor of what the rank has to do."""
    if train.batch_size % count() == 0:
        return train.batch_size // count()
    return math.gcd(train.batch_size, train.batch_size * train.accumulation // count())


def wanted(train: Train, where: str) -> int:
    """Processes to start for ``train.parallel``; RequestError if nothing tells their number, or they cannot share the batch
    evenly."""
    processes = train.processes
    if processes is None:
        if where == "cpu":
            raise RequestError(
                "parallel: ddp on a machine without GPU",
                where="train.processes",
                expected="a number of processes",
                found="none",
                do="set train.processes, or leave parallel out",
            )
        import torch

        processes = torch.cuda.device_count()
    if train.batch_size * train.accumulation % processes:
        raise RequestError(
            "the batch of a step cannot be shared evenly",
            where="train.processes",
            expected=f"a divisor of batch_size x accumulation = {train.batch_size * train.accumulation}",
            found=str(processes),
            do="change batch_size, accumulation or processes",
        )
    return processes


def run(work: Callable[[], Figures], train: Train, where: str, label: str) -> Figures:
    """Do a training's work in this process, or on the ranks that ``train.parallel`` asks for; rank 0's figures."""
    if not train.parallel or count() > 1:
        return work()
    processes = wanted(train, where)
    return on_ranks(work, processes=processes, label=label) | {"processes": processes}
