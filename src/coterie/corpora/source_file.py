"""One file of a corpus: where it is, its rows, its bytes (decompressed, in an encoding whose lines end with the byte 10)."""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from coterie.errors import RequestError


class Row(NamedTuple):
    """One row that could be read."""

    line: int
    """Physical line where it starts (JSONL, CSV, text), or row number; from 1."""
    offset: int | None
    """Byte where it starts, after decompression; none for columnar files."""
    values: Mapping[str, object]
    raw: bytes | None
    """Its bytes, for the quarantine; none for columnar files."""


class Bad(NamedTuple):
    """One row that could not be read."""

    line: int
    offset: int | None
    reason: str
    """Without the row's text."""
    raw: bytes | None


Item = Row | Bad


@dataclass(frozen=True)
class Source:
    """One file to read."""

    path: Path
    name: str
    """Inside the folder that was named, or the file's name; the id of a text file."""
    format: str
    """Tag of the file's format."""
    size: int
    modified: int
    """Nanoseconds; tells whether the file changed between hashing and reading."""

    @classmethod
    def of(cls, path: Path, name: str, format: str) -> Source:
        status = path.stat()
        return cls(path, name, format, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class OpenFile:
    """A file and what a reader must know of it."""

    source: Source
    file: BinaryIO
    encoding: str
    """Of its text, if it is a file of text."""
    columns: frozenset[str]
    """What is needed: a columnar file need not read anything else."""
    seen: set[str]
    """A reader adds the names of all columns there are."""
    key: str
    """The corpus's place in the recipe, for messages (``corpora.code``)."""

    def text(self) -> tuple[BinaryIO, str]:
        """The decompressed bytes, and their encoding."""
        return _opened(self.file, self.encoding, self.key)


Reader = Callable[[OpenFile], Iterator[Item]]
"""Gives the rows of a file, each with its line, or with the reason why it is none."""


@contextmanager
def unchanged(source: Source) -> Iterator[None]:
    """The bytes that are read must be those that were hashed.

    Raises:
        RequestError: the file cannot be read, or changed meanwhile.
    """
    try:
        yield
        status = source.path.stat()
    except OSError as error:
        raise RequestError("the file cannot be read", where=str(source.path), found=error.strerror or str(error)) from None
    if (status.st_size, status.st_mtime_ns) != (source.size, source.modified):
        raise RequestError("the file changed while it was read", where=str(source.path), do="run the same command again")


# bytes -----------------------------------------------------------------------------------------------------------------

_CHUNK = 1 << 18


def _opened(file: BinaryIO, encoding: str, key: str) -> tuple[BinaryIO, str]:
    """The decompressed bytes, and their encoding. Compression goes by the first bytes, not by the file's name."""
    try:
        wide = "\n".encode(encoding) != b"\n"  # its lines do not end with the byte 10: it is turned into UTF-8 first
    except LookupError:
        raise RequestError(
            "no such encoding", where=f"{key}.encoding", expected="utf-8, latin-1, cp1252, utf-16, ...", found=encoding
        ) from None
    head = file.read(64)
    file.seek(0)
    stream: Any = file
    if head.startswith(b"\x1f\x8b"):
        stream = io.BufferedReader(gzip.GzipFile(fileobj=file, mode="rb"), _CHUNK)
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        stream = io.BufferedReader(_Chunks(_unzstd(file)), _CHUNK)
    elif head.startswith(b"version https://git-lfs"):
        raise RequestError("a Git LFS pointer, not the data", where=str(file.name), do="run: git lfs pull")
    elif head.startswith((b"\xff\xfe", b"\xfe\xff")) and not wide:
        raise RequestError(
            "the file is not in the encoding that was declared",
            where=str(file.name),
            expected=encoding,
            found="UTF-16, by its first bytes",
            do=f"set {key}.encoding: utf-16",
        )
    if wide:
        return io.BufferedReader(_Chunks(_recoded(stream, encoding)), _CHUNK), "utf-8"
    return stream, encoding


class _Chunks(io.RawIOBase):
    """A stream of the chunks that an iterator gives."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._ready = chunks, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._ready = memoryview(chunk)
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size


def _unzstd(file: BinaryIO) -> Iterator[bytes]:
    """Any number of zstd frames. The library's own reader does not notice when the last one is cut off."""
    import zstandard

    frame, data = zstandard.ZstdDecompressor().decompressobj(), file.read(_CHUNK)
    while data:
        try:
            yield frame.decompress(data)
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from None
        data = (frame.unused_data if frame.eof else b"") or file.read(_CHUNK)
        if frame.eof and data:
            frame = zstandard.ZstdDecompressor().decompressobj()
    if not frame.eof:
        raise EOFError("the last zstd frame has no end")


def _recoded(stream: BinaryIO, encoding: str) -> Iterator[bytes]:
    """UTF-8 from an encoding in which a line does not end with the byte 10."""
    decoder = codecs.getincrementaldecoder(encoding)()
    while data := stream.read(_CHUNK):
        yield decoder.decode(data).encode()
    yield decoder.decode(b"", final=True).encode()
