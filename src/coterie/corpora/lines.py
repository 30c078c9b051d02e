"""Readers of JSONL, CSV and text: every row comes with its physical line and byte, or with the reason why it is none.

Own readers, because a library that reads a whole file at once loses the line of the row that it stumbles over, repairs
silently what is not JSON (NaN, a key given twice, two objects on a line), or drops the rest of a file after one bad byte.
"""

from __future__ import annotations

import codecs
import csv
import json
import sys
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

from coterie.corpora.source_file import Bad, Item, OpenFile, Row
from coterie.errors import RequestError


def _undecodable(error: UnicodeDecodeError, encoding: str, start: int) -> str:
    byte = error.object[error.start]
    guess = ""
    if codecs.lookup(encoding).name == "utf-8":
        guess = f" (looks like {'cp1252' if byte < 0xA0 else 'latin-1'})"
    return f"byte 0x{byte:02X} at offset {start + error.start} is not {encoding.upper()}{guess}"


def _no_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise ValueError(f"the key {json.dumps(twice)} is given twice")
    return row


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


LONGEST = 16 << 20
"""Bytes of a line. A book has two million; a longer line is no document, and may be a file made to fill memory."""


def _bounded(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Each line and its length; of one that is too long only the beginning is kept, and never more is in memory."""
    while raw := stream.readline(LONGEST + 1):
        size, more = len(raw), raw
        while size > LONGEST and not more.endswith(b"\n") and (more := stream.readline(LONGEST)):
            size += len(more)
        yield raw, size


_JSON = json.JSONDecoder(object_pairs_hook=_no_twice, parse_constant=_no_constant)


def jsonl(opened: OpenFile) -> Iterator[Item]:
    stream, encoding = opened.text()
    offset, first = 0, True
    for line, (raw, size) in enumerate(_bounded(stream), 1):
        start, offset = offset, offset + size
        if size > LONGEST:
            yield Bad(line, start, f"a line of {size:,} bytes (at most {LONGEST:,})", raw[:1000])
            continue
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
                where=f"{opened.source.path}:{line}",
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
            opened.seen.update(row)
            yield Row(line, start, row, raw)
        else:
            kind = "an array" if isinstance(row, list) else "a single value"
            yield Bad(line, start, f"{kind} (expected an object)", raw)


def csv_rows(opened: OpenFile) -> Iterator[Item]:
    stream, encoding = opened.text()
    csv.field_size_limit(sys.maxsize)
    taken: list[bytes] = []

    def lines() -> Iterator[str]:
        for number, raw in enumerate(stream, 1):
            taken.append(raw)
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
                    where=f"{opened.source.path}:{line}",
                    found=f"{len(taken)} lines without its closing quote",
                    do="correct this row",
                ) from None
            cells, reason = [""], f"bad CSV ({error})"
        raw, start, begun = b"".join(taken), offset, line
        taken.clear()
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
                raise RequestError(
                    "the header cannot be read", where=f"{opened.source.path}:{begun}", found=found, do="correct it"
                )
            header = cells
            opened.seen.update(header)
            continue
        if reason is None and len(cells) != len(header):
            reason = f"{len(cells)} fields (expected {len(header)})"
        row = dict(zip(header, cells, strict=False))
        yield Row(begun, start, row, raw) if reason is None else Bad(begun, start, reason, raw)


def text(opened: OpenFile) -> Iterator[Item]:
    stream, encoding = opened.text()
    raw = stream.read()
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        yield Bad(raw.count(b"\n", 0, error.start) + 1, 0, _undecodable(error, encoding, 0), raw)
        return
    name = opened.source.name
    row = {"text": text.removeprefix("\ufeff"), "path": name, "folder": name.rpartition("/")[0]}
    opened.seen.update(row)
    yield Row(1, 0, row, raw)
