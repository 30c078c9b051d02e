"""safetensors files as memory-mapped arrays, for writing as well as for reading: blocks may be larger than memory, and
the library's own functions hold a whole tensor at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_TYPES = {"I32": np.dtype("<i4"), "U8": np.dtype("u1"), "F32": np.dtype("<f4"), "I64": np.dtype("<i8")}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


def create(path: Path, shapes: Mapping[str, tuple[np.dtype, tuple[int, ...]]]) -> dict[str, np.memmap]:
    """A new file of zeros, to be filled. Give wide types first, so that every tensor starts at a multiple of its width."""
    header, end = {}, 0
    for name, (dtype, shape) in shapes.items():
        begin, end = end, end + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return _mapped(path, "r+")


def opened(path: Path) -> dict[str, np.memmap]:
    """The tensors of a file, read as they are touched."""
    return _mapped(path, "r")


def _mapped(path: Path, mode: str) -> dict[str, np.memmap]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {
        name: np.memmap(path, _TYPES[entry["dtype"]], mode, 8 + size + entry["data_offsets"][0], tuple(entry["shape"]))  # type: ignore[call-overload]
        for name, entry in header.items()
        if name != "__metadata__"
    }
