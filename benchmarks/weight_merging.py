"""Experts combined into one dense model, as references for a mixture: the mean of their weights, task arithmetic, TIES.

The arithmetic on a tensor is PEFT's; here the tensors are read, combined and written one at a time.

Shapes: E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from peft.utils.merge_utils import task_arithmetic, ties
from torch import Tensor

from coterie.errors import RequestError
from coterie.mixtures.layers.expert_weights import Directory, Source
from coterie.mixtures.layers.merge import Merge
from coterie.mixtures.layers.tensor_shards import SHARD, Wanted, require_room, write_model
from coterie.models.initialise import copy_tokenizer

Method = Literal["average", "task_arithmetic", "ties"]


def combine(
    base: Directory,
    experts: Sequence[Source],
    folder: Path,
    method: Method = "average",
    *,
    weight: float | None = None,
    density: float = 0.2,
    shard_bytes: int = SHARD,
) -> Path:
    """Write one dense model of several experts of one base.

    Args:
        folder: a new or empty directory.
        method: ``average`` (the mean of the weights); ``task_arithmetic`` (the base and a weighted sum of what each expert
            changed, arXiv 2212.04089); ``ties`` (the same after keeping the largest changes and one sign, arXiv 2306.01708).
        weight: of each expert's changes; by default 0.4 for task arithmetic and 1 for TIES, near what their authors use.
        density: share of the changes that TIES keeps.

    Raises:
        RequestError: the experts do not go together, or a setting has no effect.
    """
    if method == "average" and weight is not None:
        raise RequestError("an average has no weight", where="weight", do="use task_arithmetic")
    merge = Merge(base, experts, shared="average")
    merge.check()
    default = {"average": 1 / len(experts), "task_arithmetic": 0.4, "ties": 1.0}[method]
    share = default if weight is None else weight
    wanted = [
        Wanted(name, like.dtype, like.shape, partial(_combined, merge, name, method, share, density))
        for name, like in ((name, base.tensors[name]) for name in merge.names)
    ]
    require_room(folder, sum(t.bytes for t in wanted))
    folder.mkdir(parents=True, exist_ok=True)
    config = {k: v for k, v in base.config.to_dict().items() if k != "_name_or_path"}
    write_model(folder, wanted, config, shard_bytes)
    copy_tokenizer(base.folder, folder)
    return folder


def _combined(merge: Merge, name: str, method: Method, weight: float, density: float) -> Tensor:
    start = merge.base.read(name).float()
    changes = [expert.read(name).float() - start for expert in merge.experts]
    weights = torch.full((len(changes),), weight)
    if method == "ties":
        return start + ties(changes, weights, density)
    return start + task_arithmetic(changes, weights)
