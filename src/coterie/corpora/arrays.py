"""safetensors files written some rows at a time and read as memory maps: blocks may be larger than memory, and the
library's own functions hold a whole tensor at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

_TYPES: dict[str, np.dtype] = {"I32": np.dtype("<i4"), "U8": np.dtype("u1"), "F32": np.dtype("<f4"), "I64": np.dtype("<i8")}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}


Put = Callable[[str, int, np.ndarray], None]
"""Writes some rows, from a row on, of a tensor."""


@contextmanager
def written(path: Path, types: Mapping[str, np.dtype], shape: tuple[int, int]) -> Iterator[Put]:
    """A new file. Plain writes, not a memory map: on a full disk a write is an error, and a map kills the process.

    Args:
        types: type of each tensor. Give wide ones first, so that every tensor starts at a multiple of its width.
        shape: of all of them.
    """
    header: dict[str, dict] = {}
    end = 0
    for name, dtype in types.items():
        begin, end = end, end + dtype.itemsize * shape[0] * shape[1]
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)

        def put(name: str, row: int, values: np.ndarray) -> None:
            file.seek(8 + len(text) + header[name]["data_offsets"][0] + row * values.strides[0])
            file.write(np.ascontiguousarray(values).data)

        yield put


def opened(path: Path) -> dict[str, np.memmap]:
    """The tensors of a file, read as they are touched."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {
        name: np.memmap(path, _TYPES[entry["dtype"]], "r", 8 + size + entry["data_offsets"][0], tuple(entry["shape"]))
        for name, entry in header.items()
        if name != "__metadata__"
    }
