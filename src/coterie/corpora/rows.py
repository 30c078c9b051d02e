"""One streaming reader per format: every row comes with its file and physical line, or with the reason why it is none.

Own readers, because a library that reads a whole file at once loses the line of the row that it stumbles over, repairs
silently what is not JSON (NaN, a key given twice, two objects on a line), or drops the rest of a file after one bad byte.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

from coterie.corpora.sources import Source, unchanged
from coterie.errors import RequestError


class Row(NamedTuple):
    """One row that could be read."""

    line: int
    """Physical line where it starts (JSONL, CSV, text), or row number; from 1."""
    offset: int | None
    """Byte where it starts, after decompression; none for columnar files."""
    values: dict[str, Any]
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


def rows(
    source: Source, encoding: str, columns: frozenset[str], seen: set[str], key: str
) -> Iterator[tuple[Item, Callable[[], int]]]:
    """Read one file.

    Args:
        encoding: of JSONL, CSV and text files.
        columns: what is needed; columnar files read nothing else.
        seen: receives the names of all columns there are.
        key: the corpus's place in the recipe, for messages (``corpora.code``).

    Yields:
        each row, and a function that tells how many bytes of the file have been read.

    Raises:
        RequestError: the file as a whole cannot be read: empty, truncated, changed meanwhile, not of its format.
    """
    read = 0
    with unchanged(source), source.path.open("rb") as file:
        try:
            for item in _items(file, source, encoding, columns, seen, key):
                read += 1
                yield item, file.tell
        except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeError) as error:
            undecodable = isinstance(error, UnicodeError)
            raise RequestError(
                "the file is not in the encoding that was declared" if undecodable else "a damaged or incomplete file",
                where=str(source.path),
                expected=encoding if undecodable else None,
                found=f"{error} after {read:,} rows",
                kept="nothing of it was used",
                do=f"correct {key}.encoding" if undecodable else "fetch the file again",
            ) from None
    if read == 0 and source.format != "text":
        raise RequestError(
            "0 rows",
            where=str(source.path),
            found="an empty file" if source.size == 0 else "no row in the file",
            do=f"take it out of {key}.path",
        )


def _items(
    file: BinaryIO, source: Source, encoding: str, columns: frozenset[str], seen: set[str], key: str
) -> Iterator[Item]:
    if source.format == "parquet":
        return _parquet(file, source, columns, seen)
    if source.format == "arrow":
        return _arrow(file, source, columns, seen)
    stream, lines_in = _bytes(file, encoding, key)
    return {"jsonl": _jsonl, "csv": _csv, "text": _text}[source.format](stream, source, lines_in, seen)


def _bytes(file: BinaryIO, encoding: str, key: str) -> tuple[BinaryIO, str]:
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
        self.ready, self.fresh = b"", True

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
                self.ready = self.frame.decompress(data)
            except self.library.ZstdError as error:
                raise EOFError(str(error)) from None
        size = min(len(buffer), len(self.ready))
        buffer[:size], self.ready = self.ready[:size], self.ready[size:]
        return size


def _undecodable(error: UnicodeDecodeError, encoding: str, start: int) -> str:
    byte = error.object[error.start]
    guess = ""
    if codecs.lookup(encoding).name == "utf-8":
        guess = f" (looks like {'cp1252' if byte < 0xA0 else 'latin-1'})"
    return f"byte 0x{byte:02X} at offset {start + error.start} is not {encoding.upper()}{guess}"


# ---- JSONL


def _no_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {json.dumps(twice)} is given twice")
    return row


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_JSON = json.JSONDecoder(object_pairs_hook=_no_twice, parse_constant=_no_constant)


def _jsonl(stream: BinaryIO, source: Source, encoding: str, seen: set[str]) -> Iterator[Item]:
    offset, first = 0, True
    for line, raw in enumerate(stream, 1):
        start, offset = offset, offset + len(raw)
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError as error:
            yield Bad(line, start, _undecodable(error, encoding, start), raw)
            continue
        if line == 1:
            text = text.removeprefix("\ufeff")
        text = text.strip(" \t\r\n")
        if not text:
            continue
        if first and text in ("[", "{"):
            raise RequestError(
                "JSON over many lines",
                where=f"{source.path}:{line}",
                expected="one JSON object on each line",
                found="an array" if text == "[" else "an object",
                do="convert it, for example with: jq -c '.[]' FILE > FILE.jsonl",
            )
        first = False
        try:
            row = _JSON.decode(text)
        except json.JSONDecodeError as error:
            problem = "more than one JSON value on the line" if error.msg == "Extra data" else f"bad JSON ({error.msg})"
            yield Bad(line, start, f"{problem} at column {error.colno}", raw)
            continue
        except (ValueError, RecursionError) as error:
            yield Bad(line, start, "nested too deeply" if isinstance(error, RecursionError) else str(error), raw)
            continue
        if type(row) is dict:
            seen.update(row)
            yield Row(line, start, row, raw)
        else:
            kind = "an array" if isinstance(row, list) else "a single value"
            yield Bad(line, start, f"{kind} (expected an object)", raw)


# ---- CSV


def _csv(stream: BinaryIO, source: Source, encoding: str, seen: set[str]) -> Iterator[Item]:
    csv.field_size_limit(sys.maxsize)
    held: list[bytes] = []

    def lines() -> Iterator[str]:
        for number, raw in enumerate(stream, 1):
            held.append(raw)
            text = raw.decode(encoding, "surrogateescape")  # bytes that do not decode are found below, row by row
            yield text.removeprefix("\ufeff") if number == 1 else text

    reader = csv.reader(lines(), strict=True)
    header: list[str] | None = None
    line, offset = 1, 0
    while True:
        reason = None
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise RequestError(
                    "a quoted field that never ends",
                    where=f"{source.path}:{line}",
                    found=f"{len(held)} lines without its closing quote",
                    do="correct this row",
                ) from None
            cells, reason = [""], f"bad CSV ({error})"
        raw, start, begun = b"".join(held), offset, line
        held.clear()
        line, offset = reader.line_num + 1, offset + len(raw)
        try:
            raw.decode(encoding)
        except UnicodeDecodeError as error:
            reason = _undecodable(error, encoding, start)
        if not cells:
            continue
        if header is None:
            twice = {name for name in cells if cells.count(name) > 1}
            if reason or twice:
                found = reason or f"the column {sorted(twice)[0]!r} twice"
                raise RequestError("the header cannot be read", where=f"{source.path}:{begun}", found=found, do="correct it")
            header = cells
            seen.update(header)
        elif reason is None and len(cells) != len(header):
            yield Bad(begun, start, f"{len(cells)} fields (expected {len(header)})", raw)
        elif reason is not None:
            yield Bad(begun, start, reason, raw)
        else:
            yield Row(begun, start, dict(zip(header, cells, strict=True)), raw)


# ---- text: one file, one document


def _text(stream: BinaryIO, source: Source, encoding: str, seen: set[str]) -> Iterator[Item]:
    raw = stream.read()
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        yield Bad(raw.count(b"\n", 0, error.start) + 1, 0, _undecodable(error, encoding, 0), raw)
        return
    folder = source.name.rpartition("/")[0]
    row = {"text": text.removeprefix("\ufeff"), "path": source.name, "folder": folder}
    seen.update(row)
    yield Row(1, 0, row, raw)


# ---- columnar files


def _parquet(file: BinaryIO, source: Source, columns: frozenset[str], seen: set[str]) -> Iterator[Item]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        seen.update(names)
        yield from _batches(table.iter_batches(4096, columns=[n for n in names if n in columns]))
    except (pa.ArrowException, OSError) as error:
        raise _broken(source, "Parquet", error) from None


def _arrow(file: BinaryIO, source: Source, columns: frozenset[str], seen: set[str]) -> Iterator[Item]:
    import pyarrow as pa

    try:
        head = file.read(6)
        file.seek(0)
        if head == b"ARROW1":
            whole = pa.ipc.open_file(file)
            batches: Any = (whole.get_batch(i) for i in range(whole.num_record_batches))
            names = whole.schema.names
        else:
            batches = pa.ipc.open_stream(file)
            names = batches.schema.names
        seen.update(names)
        wanted = [n for n in names if n in columns]
        pieces = (batch.select(wanted).slice(i, 4096) for batch in batches for i in range(0, len(batch), 4096))
        yield from _batches(pieces)
    except (pa.ArrowException, OSError) as error:
        raise _broken(source, "Arrow", error) from None


def _broken(source: Source, form: str, error: Exception) -> RequestError:
    found = str(error).splitlines()[0] if str(error) else type(error).__name__
    return RequestError(f"not a whole {form} file", where=str(source.path), found=found, do="fetch the file again")


def _batches(batches: Iterator[Any]) -> Iterator[Item]:
    number = 0
    for batch in batches:
        try:
            values: list[Any] = batch.to_pylist()
        except UnicodeDecodeError:
            values = [_one(batch, i) for i in range(len(batch))]
        for value in values:
            number += 1
            if value is None:
                yield Bad(number, None, "text that is not UTF-8", None)
            else:
                yield Row(number, None, value, None)


def _one(batch: Any, index: int) -> dict[str, Any] | None:
    try:
        return batch.slice(index, 1).to_pylist()[0]
    except UnicodeDecodeError:
        return None
