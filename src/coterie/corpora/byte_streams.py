"""The bytes of a file: decompressed, and in an encoding whose lines end with the byte 10."""

from __future__ import annotations

import codecs
import gzip
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from coterie.errors import RequestError

_CHUNK = 1 << 18


def opened(file: BinaryIO, encoding: str, key: str) -> tuple[BinaryIO, str]:
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
