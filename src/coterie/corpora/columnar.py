"""Readers of Parquet and Arrow files, in batches; of the columns, only what is needed is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from coterie.corpora.source_file import Bad, Item, OpenFile, Row, Source
from coterie.errors import RequestError


def parquet(opened: OpenFile) -> Iterator[Item]:
    try:
        table = pq.ParquetFile(opened.file)
        names = table.schema_arrow.names
        opened.seen.update(names)
        yield from _rows(table.iter_batches(4096, columns=[n for n in names if n in opened.columns]))
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise _broken(opened.source, "Parquet", error) from None


def arrow(opened: OpenFile) -> Iterator[Item]:
    try:
        head = opened.file.read(6)
        opened.file.seek(0)
        batches: Iterable[pa.RecordBatch]
        if head == b"ARROW1":
            whole = pa.ipc.open_file(opened.file)
            batches, names = (whole.get_batch(i) for i in range(whole.num_record_batches)), whole.schema.names
        else:
            stream = pa.ipc.open_stream(opened.file)
            batches, names = stream, stream.schema.names
        opened.seen.update(names)
        wanted = [n for n in names if n in opened.columns]
        yield from _rows(b.select(wanted).slice(i, 4096) for b in batches for i in range(0, len(b), 4096))
    except (pa.ArrowException, OSError, MemoryError) as error:
        raise _broken(opened.source, "Arrow", error) from None


def _broken(source: Source, form: str, error: Exception) -> RequestError:
    found = str(error).splitlines()[0] if str(error) else type(error).__name__
    return RequestError(f"not a whole {form} file", where=str(source.path), found=found, do="fetch the file again")


def _rows(batches: Iterable[pa.RecordBatch]) -> Iterator[Item]:
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


def _sound(batch: pa.RecordBatch) -> bool:
    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
