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
    except (pa.ArrowException, OSError, MemoryError) as error:
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
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise _broken(source, "Arrow", error) from None


def _broken(source: Source, form: str, error: Exception) -> RequestError:
    found = str(error).splitlines()[0] if str(error) else type(error).__name__
    return RequestError(f"not a whole {form} file", where=str(source.path), found=found, do="fetch the file again")


def _batches(batches: Iterator[Any]) -> Iterator[Item]:
    """Damaged offsets point outside the memory, and text need not be UTF-8: both are looked for before values are made."""
    number = 0
    for batch in batches:
        for part in [batch] if _sound(batch) else (batch.slice(i, 1) for i in range(len(batch))):
            if part is batch or _sound(part):
                for values in part.to_pylist():
                    number += 1
                    yield Row(number, None, values, None)
            else:
                number += 1
                yield Bad(number, None, "damaged values, or text that is not UTF-8", None)


def _sound(batch: Any) -> bool:
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
