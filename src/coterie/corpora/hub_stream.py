"""A hub dataset read as a stream into windows of time, in one pass: what fills them is kept, the rest is never fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from coterie.corpora.corpus_settings import Documents
from coterie.corpora.row_plan import Plan
from coterie.corpora.template import RowError
from coterie.corpora.windows import Window
from coterie.errors import RequestError
from coterie.progress import bar, say
from coterie.spec.json_types import Figures
from coterie.store import Action, Artifact, Store

BYTES_A_TOKEN = 6
"""More than any byte-level tokenizer needs for prose or code, so that no window falls short."""


def streamed(store: Store, corpus: Documents, plan: Plan, *, label: str) -> Artifact:
    """The rows that fill the windows, as they were read.

    Returns:
        a ``streams`` artifact: ``rows.parquet`` with the columns that the recipe names; facts: rows ``read``, and for each
        window ``documents`` and ``bytes``.

    Raises:
        RequestError: the dataset cannot be read; no row lies in any window.
    """
    assert corpus.stream is not None
    spec = {
        "hub": corpus.hub,
        "config": corpus.config,
        "revision": corpus.revision,
        "split": corpus.split_name or "train",
        "stream": corpus.stream.model_dump(mode="json"),
        "columns": sorted(plan.needed),
        "time": corpus.time,
        "time_pattern": corpus.time_pattern,
        "where": corpus.model_dump(mode="json")["where"],
    }

    def build(folder: Path) -> None:
        _read(corpus, plan, label, folder)

    return store.make(Action("streams", spec), build, label=f"stream {label}", tokens=None)


@dataclass
class _Filling:
    """A window on its way to its tokens."""

    window: Window
    documents: int = 0
    bytes: int = 0

    def as_json(self) -> Figures:
        return {
            "start": str(self.window.start),
            "end": str(self.window.end),
            "documents": self.documents,
            "bytes": self.bytes,
        }


def _read(corpus: Documents, plan: Plan, label: str, folder: Path) -> None:
    stream = corpus.stream
    assert stream is not None
    windows, wanted = [_Filling(window) for window in stream.windows.spans()], stream.tokens * BYTES_A_TOKEN
    seen: set[str] = set()
    read = unusable = 0
    rows = _Rows(folder / "rows.parquet")
    with bar(f"stream {label}", wanted * len(windows), "bytes") as progress:
        for row in islice(_stream(corpus, label), stream.rows):
            read += 1
            seen.update(row)
            try:
                document = plan.document(row)
            except RowError:
                unusable += 1
                continue
            if isinstance(document, str) or document.time is None:
                continue
            place = next((w for w in windows if w.window.start <= document.time < w.window.end), None)
            if place is None or place.bytes >= wanted:
                continue
            place.documents += 1
            place.bytes += len((document.text + (document.prompt or "")).encode())
            rows.add({name: row.get(name) for name in sorted(plan.needed)})
            progress.to(sum(min(w.bytes, wanted) for w in windows))
            if all(w.bytes >= wanted for w in windows):
                break
    if not any(w.documents for w in windows):
        if read:
            plan.check_columns(seen, read)
        raise RequestError(
            f"none of {read:,} rows lies in a window",
            where=f"corpora.{label}.stream.windows",
            found=f"{unusable:,} rows without a usable text or date",
            do="correct the windows, time or time_pattern",
        )
    rows.close()
    for w in windows:
        if w.bytes < wanted:
            say(f"  {label}: [{w.window.start}, {w.window.end}) has {w.bytes:,} of {wanted:,} bytes: the stream ended")
    facts = {"read": read, "unusable": unusable, "windows": [w.as_json() for w in windows]}
    (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True))


class _Rows:
    """Rows on their way to a Parquet file, some thousands in memory."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, list[dict[str, object]]()
        self.writer: pq.ParquetWriter | None = None

    def add(self, row: dict[str, object]) -> None:
        self.rows.append(row)
        if len(self.rows) >= 2000:
            self._flush()

    def _flush(self) -> None:
        table = pa.Table.from_pylist(self.rows, schema=self.writer.schema if self.writer else None)
        self.writer = self.writer or pq.ParquetWriter(self.path, table.schema, compression="zstd")
        self.writer.write_table(table)
        self.rows = []

    def close(self) -> None:
        if self.rows:
            self._flush()
        assert self.writer is not None
        self.writer.close()


def _stream(corpus: Documents, label: str) -> Iterator[dict[str, object]]:
    import datasets

    try:
        yield from datasets.load_dataset(
            str(corpus.hub), corpus.config, revision=corpus.revision, split=corpus.split_name or "train", streaming=True
        )
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(
            f"the dataset {corpus.hub!r} cannot be streamed",
            where=f"corpora.{label}",
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}",
            do=f"without a network, set corpora.{label}.path to a copy, without hub and stream",
        ) from None
