"""Readers of Parquet and Arrow files, in batches; of the columns, only what is needed is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from coterie.corpora.lines import Bad, Item, Row
from coterie.corpora.sources import Source
from coterie.errors import RequestError


def parquet(file: BinaryIO, source: Source, columns: frozenset[str], seen: set[str]) -> Iterator[Item]:
    try:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        seen.update(names)
        yield from _batches(table.iter_batches(4096, columns=[n for n in names if n in columns]))
    except (pa.ArrowException, OSError) as error:
        raise _broken(source, "Parquet", error) from None


def arrow(file: BinaryIO, source: Source, columns: frozenset[str], seen: set[str]) -> Iterator[Item]:
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
