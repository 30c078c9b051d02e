"""Sizes that a configuration claims, held against the weights that there are, while a model is built and has no memory yet.

transformers builds a model from its configuration alone before it looks at weights: a claim of a million layers, or of one
as wide as memory, costs hours or all memory before the first tensor is missed. The price of watching is a count at every
parameter. And what is opened is finite: one pass over the numbers, at the speed of memory.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from coterie.errors import RequestError

_MASKS = 2**28
"""Numbers in buffers that no file holds, such as the masks of old architectures."""
_PACKED = {"I32": 8, "I8": 2, "U8": 2}
"""Numbers of four bits in one of another type, as quantised weights lie in files."""


@contextmanager
def bounded(folder: Path, files: Iterable[Path]) -> Iterator[None]:
    """Inside, this thread builds no model that is larger than the weights in ``files``.

    Raises:
        RequestError: the configuration claims more than there is, or a file of weights is damaged.
    """
    tensors, numbers = held(files)
    watch = _Watch(folder, 2 * numbers + 2**16, max(numbers, _MASKS), 16 * tensors + 2**12)  # twice: a head that is tied
    with ExitStack() as stack:
        for register, hook in (
            (hooks.register_module_parameter_registration_hook, watch.parameter),
            (hooks.register_module_buffer_registration_hook, watch.buffer),
            (hooks.register_module_module_registration_hook, watch.module),
        ):
            stack.callback(register(hook).remove)
        yield


def held(files: Iterable[Path]) -> tuple[int, int]:
    """How many tensors some files of weights hold, and how many numbers; see `headers`."""
    sizes = [size * _PACKED.get(dtype, 1) for dtype, size in headers(files)]
    return len(sizes), sum(sizes)


def headers(files: Iterable[Path]) -> Iterator[tuple[str, int]]:
    """Type (such as ``BF16``) and size of every tensor in some files of weights, by their headers.

    Raises:
        RequestError: a header is damaged, or claims bytes that are not there.
    """
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    part = file.get_slice(name)
                    yield part.get_dtype(), math.prod(part.get_shape())
        except (SafetensorError, OSError) as error:
            raise RequestError("damaged weights", where=str(path), found=str(error), do="fetch the file again") from None


class _Watch:
    """Counts what one thread registers without memory, and stops it above the bounds."""

    def __init__(self, folder: Path, parameters: int, buffers: int, modules: int) -> None:
        self.folder, self.thread = folder, threading.get_ident()
        self.left = {"parameters": parameters, "buffers": buffers, "modules": modules}
        self.seen: set[tuple[int, str]] = set()

    def parameter(self, module: nn.Module, name: str, value: Tensor | None) -> None:
        if value is not None and value.is_meta and (id(module), name) not in self.seen:  # loading sets them once more
            self.seen.add((id(module), name))
            self._take("parameters", value.numel())

    def buffer(self, module: nn.Module, name: str, value: Tensor | None) -> None:
        if value is not None and value.is_meta:
            self._take("buffers", value.numel())

    def module(self, module: nn.Module, name: str, value: nn.Module | None) -> None:
        self._take("modules", 1)

    def _take(self, what: str, count: int) -> None:
        if threading.get_ident() != self.thread:
            return
        self.left[what] -= count
        if self.left[what] < 0:
            raise RequestError(
                "the configuration claims more than the weights hold",
                where=str(self.folder / "config.json"),
                found=f"{-self.left[what]:,} {what} too many, and the model is not whole yet",
                do="correct its sizes, or fetch the model again",
            )


def require_finite(tensors: Iterable[tuple[str, Tensor]], where: Path) -> None:
    """RequestError if a number is NaN or infinite; names the tensor."""
    for name, tensor in tensors:
        if not finite(tensor):
            raise RequestError(
                "the weights are not finite", where=f"{where} ({name})", found="NaN or infinity", do="use another checkpoint"
            )


def finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite. The extremes say so, NaN being both, at the speed of memory."""
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())
