"""Operators and floating point operations of a call, counted: no quiet machine is needed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

VIEWS = {
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "permute",
    "expand",
    "slice",
    "select",
    "unsqueeze",
    "squeeze",
    "split",
    "split_with_sizes",
    "unbind",
    "detach",
    "alias",
    "as_strided",
    "reshape",
}


class _Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


def operators(call: Callable[[], Any]) -> int:
    """Operators dispatched, views left out."""
    with _Operators() as counter:
        call()
    return counter.seen.total()


def _addmm(y: Any, a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


def _grouped(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * a[0] * a[1] * b[2]


MORE: Any = {torch.ops.aten.addmm_: _addmm, torch.ops.aten._grouped_mm: _grouped}
"""What torch's counter leaves out."""


def flops(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False, custom_mapping=MORE) as counter:
        call()
    return counter.get_total_flops()
