"""The bytes of a file: decompressed, and in an encoding whose lines end with the byte 10."""

from __future__ import annotations

import codecs
import gzip
import io
from typing import Any, BinaryIO

from coterie.errors import RequestError


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
        stream = io.BufferedReader(gzip.GzipFile(fileobj=file, mode="rb"), 1 << 18)
    elif head.startswith(b"\x28\xb5\x2f\xfd"):
        stream = io.BufferedReader(_Zstd(file), 1 << 18)
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
    return (codecs.EncodedFile(stream, "utf-8", encoding), "utf-8") if wide else (stream, encoding)


class _Zstd(io.RawIOBase):
    """A zstd stream of any number of frames that notices when the last one is cut off; the library's reader does not."""

    def __init__(self, file: BinaryIO) -> None:
        import zstandard

        self.library, self.file = zstandard, file
        self.frame = zstandard.ZstdDecompressor().decompressobj()
        self.ready, self.fresh = memoryview(b""), True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.ready:
            data = self.frame.unused_data if self.frame.eof else b""
            if self.frame.eof:
                self.frame, self.fresh = self.library.ZstdDecompressor().decompressobj(), True
            data = data or self.file.read(1 << 17)
            if not data:
                if self.fresh:
                    return 0
                raise EOFError("the last zstd frame has no end")
            self.fresh = False
            try:
                self.ready = memoryview(self.frame.decompress(data))
            except self.library.ZstdError as error:
                raise EOFError(str(error)) from None
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size
