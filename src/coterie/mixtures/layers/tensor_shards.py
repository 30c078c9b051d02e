"""safetensors files read and written one tensor at a time.

The library's own writer wants a whole file's tensors in memory at once, and its reader maps the files, so that what was read
counts as memory until it is let go. A merge has far more experts than memory; here few tensors are held, and the format is
plain enough: eight bytes with the length of a JSON header, the header, then the bytes of all tensors in its order. While
a tensor is written or compared the next are read, so the disk does not wait for the processor. What was read or written is
let go from the system's memory too: it is needed once, and on virtual machines the memory of files costs more than the disk
(docs/results/speed.md).
"""

from __future__ import annotations

import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import RequestError, WorkError
from coterie.spec.json_types import Settings

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
INDEX = "model.safetensors.index.json"
SHARD = 5 * 10**9
"""Bytes in a file, unless said otherwise."""
AHEAD = 2
"""Tensors that are read while one is used: so many that neither reading nor writing waits long for the other."""
_PIECE = 1 << 24
"""Bytes of a file that the system holds in memory for us at a time, about."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    bytes: int

    def read(self, scratch: Tensor | None = None) -> Tensor:
        """The tensor, in memory of its own; or in ``scratch`` (bytes), which spares asking the system for fresh pages."""
        if scratch is None:
            tensor = torch.empty(self.shape, dtype=self.dtype)
        else:
            tensor = scratch[: self.bytes].view(self.dtype).view(self.shape)
        if self.bytes:
            with self.file.open("rb", buffering=0) as stream:
                view, at = _bytes_of(tensor), self.begin
                stream.seek(at)
                while view:
                    _advise(stream.fileno(), "WILLNEED", at, min(_PIECE, len(view)))
                    count = stream.readinto(view[:_PIECE])
                    if not count:
                        raise WorkError("damaged weights: the file ends early", where=str(self.file))
                    _advise(stream.fileno(), "DONTNEED", at, count)
                    view, at = view[count:], at + count
        return tensor


def _advise(handle: int, what: str, begin: int, bytes: int) -> None:
    """Tell the system what a part of a file is needed for, where system and file system listen."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(handle, begin, bytes, getattr(os, f"POSIX_FADV_{what}"))


def stored(files: Iterable[Path]) -> dict[str, Stored]:
    """Every tensor of some files, by name; nothing but headers is read.

    Raises:
        RequestError: a file is damaged, or two hold one name.
    """
    found: dict[str, Stored] = {}
    for file in files:
        try:
            with file.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                size = file.stat().st_size
                if not 2 <= length <= size - 8:
                    raise ValueError("the header's length is wrong")
                header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            for name, entry in header.items():
                begin, end = entry["data_offsets"]
                tensor = Stored(file, DTYPES[entry["dtype"]], tuple(entry["shape"]), 8 + length + begin, end - begin)
                if not 0 <= begin <= end <= size - 8 - length or _bytes(tensor.dtype, tensor.shape) != tensor.bytes:
                    raise ValueError(f"{name} does not lie inside the file")
                if name in found:
                    raise ValueError(f"{name} is also in {found[name].file.name}")
                found[name] = tensor
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise RequestError("damaged weights", where=str(file), found=str(error), do="fetch the file again") from None
    return found


@dataclass(frozen=True)
class Wanted:
    """A tensor to be written, and how to get it."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    get: Callable[..., Tensor]
    reuses: bool = False
    """``get`` can be given memory to read into, as `Stored.read`."""

    @property
    def bytes(self) -> int:
        return _bytes(self.dtype, self.shape)


def like(tensor: Tensor, name: str, dtype: torch.dtype) -> Wanted:
    """A tensor that is in memory, to be written."""
    return Wanted(name, dtype, tuple(tensor.shape), lambda: tensor)


def _bytes(dtype: torch.dtype, shape: Sequence[int]) -> int:
    count = dtype.itemsize
    for n in shape:
        count *= n
    return count


def require_room(folder: Path, needed: int) -> None:
    """RequestError unless the disk has so many bytes free."""
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise RequestError(
            "the disk is too small for the checkpoint",
            where=str(folder),
            expected=f"{needed / 1e9:.2f} GB free",
            found=f"{free / 1e9:.2f} GB",
            do="make room, or write a smaller one (--dtype, without --expand)",
        )


def write(
    folder: Path,
    wanted: Sequence[Wanted],
    shard_bytes: int,
    stem: str = "model",
    ahead: int = AHEAD,
    scratch: Sequence[Tensor] = (),
) -> dict[str, str]:
    """Write tensors in order, a new file where one would grow beyond ``shard_bytes``; 1 + ``ahead`` tensors are held.

    Args:
        scratch: memory (bytes) for the largest tensor, 1 + ``ahead`` times, to be read into in turn.

    Returns:
        the file of each tensor.

    Raises:
        RequestError: a tensor is not finite.
    """
    parts: list[list[Wanted]] = [[]]
    for tensor in wanted:
        if parts[-1] and sum(t.bytes for t in parts[-1]) + tensor.bytes > shard_bytes:
            parts.append([])
        parts[-1].append(tensor)
    where: dict[str, str] = {}
    for number, part in enumerate(parts, start=1):
        name = f"{stem}.safetensors" if len(parts) == 1 else f"{stem}-{number:05d}-of-{len(parts):05d}.safetensors"
        _write_file(folder / name, part, ahead, scratch)
        where |= {tensor.name: name for tensor in part}
    return where


def _write_file(file: Path, wanted: Sequence[Wanted], ahead: int, scratch: Sequence[Tensor]) -> None:
    assert not scratch or len(scratch) > ahead, "what is written would be read over"
    wanted = sorted(wanted, key=lambda t: -t.dtype.itemsize)  # so that each tensor starts at a multiple of its item's size
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in wanted:
        span = [at, at + tensor.bytes]
        header[tensor.name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span}
        at += tensor.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb", buffering=0) as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        kept = 0  # bytes of the file that are on the disk
        turns = zip(wanted, cycle(scratch or [None]), strict=False)
        for ready in read_ahead((partial(_checked, tensor, file, memory) for tensor, memory in turns), ahead):
            view = _bytes_of(ready)
            while view:
                view = view[stream.write(view) :]
            if stream.tell() - kept >= _PIECE:
                os.fsync(stream.fileno())
                _advise(stream.fileno(), "DONTNEED", kept, stream.tell() - kept)
                kept = stream.tell()


def read_ahead(calls: Iterable[Callable[[], Tensor]], ahead: int = AHEAD) -> Iterator[Tensor]:
    """Results in order; while one is used the next are made. No more than 1 + ``ahead`` are there at a time.

    A call is taken when it is begun: what ``calls`` gives it in turn, such as memory, is in the order of the results. (What
    calls took for themselves as they ran was in the order in which threads happened to run.)
    """
    with ThreadPoolExecutor(max(ahead, 1)) as aside:
        made: deque[Future[Tensor]] = deque()
        for call in calls:
            made.append(aside.submit(call))
            if len(made) > ahead:
                yield made.popleft().result()
        while made:
            yield made.popleft().result()


def _checked(wanted: Wanted, file: Path, memory: Tensor | None) -> Tensor:
    tensor = (wanted.get(memory) if wanted.reuses else wanted.get()).to(wanted.dtype).contiguous()
    assert tuple(tensor.shape) == wanted.shape, f"{wanted.name}: {tuple(tensor.shape)} is not {wanted.shape}"
    if not finite(tensor):
        raise RequestError(
            "the weights are not finite",
            where=f"{file.name} ({wanted.name})",
            found="NaN or infinity",
            kept="nothing was written",
            do="use another checkpoint, or a wider --dtype",
        )
    return tensor


def _bytes_of(tensor: Tensor) -> memoryview:
    """A contiguous tensor's memory."""
    raw: Any = tensor.view(-1).view(torch.uint8).numpy() if tensor.numel() else b""
    return memoryview(raw)


def finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite. The extremes say so, NaN being both, at the speed of memory."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


def same(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors are equal bit by bit."""
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    raw = [x.contiguous().view(-1).view(torch.uint8) for x in (one, two)]
    wide = len(raw[0]) // 8 * 8
    words = [x[:wide].view(torch.int64) for x in raw]
    return torch.equal(words[0], words[1]) and torch.equal(raw[0][wide:], raw[1][wide:])


def index(where: dict[str, str], bytes: int) -> str:
    """The text of an index file."""
    return json.dumps({"metadata": {"total_size": bytes}, "weight_map": dict(sorted(where.items()))}, indent=1) + "\n"


def write_model(folder: Path, wanted: Sequence[Wanted], config: Settings, shard_bytes: int) -> None:
    """Weights as stock libraries look for them, with an index where there are several files, and the configuration."""
    where = write(folder, wanted, shard_bytes)
    if len(set(where.values())) > 1:
        (folder / INDEX).write_text(index(where, sum(t.bytes for t in wanted)))
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
