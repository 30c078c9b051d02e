"""A hub dataset read as a stream into windows of time, in one pass: what fills them is kept, the rest is never fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from coterie.corpora.corpus_settings import Documents
from coterie.corpora.row_plan import Plan
from coterie.corpora.template import RowError
from coterie.errors import RequestError
from coterie.progress import bar, say
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


def _read(corpus: Documents, plan: Plan, label: str, folder: Path) -> None:
    stream = corpus.stream
    assert stream is not None
    windows = stream.windows.spans()
    wanted = stream.tokens * BYTES_A_TOKEN
    documents, held = [0] * len(windows), [0] * len(windows)
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
            place = next((i for i, w in enumerate(windows) if w.start <= document.time < w.end), None)
            if place is None or held[place] >= wanted:
                continue
            documents[place] += 1
            held[place] += len((document.text + (document.prompt or "")).encode())
            rows.add({name: row.get(name) for name in sorted(plan.needed)})
            progress.to(sum(min(h, wanted) for h in held))
            if min(held) >= wanted:
                break
    if not any(documents):
        if read:
            plan.check_columns(seen, read)
        raise RequestError(
            f"none of {read:,} rows lies in a window",
            where=f"corpora.{label}.stream.windows",
            found=f"{unusable:,} rows without a usable text or date",
            do="correct the windows, time or time_pattern",
        )
    rows.close()
    filled = []
    for window, count, size in zip(windows, documents, held, strict=True):
        filled.append({"start": str(window.start), "end": str(window.end), "documents": count, "bytes": size})
        if size < wanted:
            say(f"  {label}: [{window.start}, {window.end}) has {size:,} of {wanted:,} bytes: the stream ended")
    facts = {"read": read, "unusable": unusable, "windows": filled}
    (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True))


class _Rows:
    """Rows on their way to a Parquet file, some thousands in memory."""

    def __init__(self, path: Path) -> None:
        self.path, self.held = path, list[dict[str, Any]]()
        self.writer: pq.ParquetWriter | None = None

    def add(self, row: dict[str, Any]) -> None:
        self.held.append(row)
        if len(self.held) >= 2000:
            self._flush()

    def _flush(self) -> None:
        table = pa.Table.from_pylist(self.held, schema=self.writer.schema if self.writer else None)
        self.writer = self.writer or pq.ParquetWriter(self.path, table.schema, compression="zstd")
        self.writer.write_table(table)
        self.held = []

    def close(self) -> None:
        if self.held:
            self._flush()
        assert self.writer is not None
        self.writer.close()


def _stream(corpus: Documents, label: str) -> Iterator[dict[str, Any]]:
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
