"""The profile of one part of a corpus: what is measured of every document, streamed, in memory bounded by the batch.

    profile.parquet   a row a document, in the documents' order: key, content, split, the measures, the columns
    bands.npy         [b, N] keys under which near-duplicates meet
    short.npy         [N, b * r] one byte of each MinHash value
    terms/*.npy       hashed term counts (sparse), for topics
    texts.arrow       prompt and text in compressed batches of 64, so that single documents are read without a scan

`N` documents of the part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt64

from coterie.corpora.row_plan import OWN
from coterie.corpora.splits import SPLITS
from coterie.errors import RequestError
from coterie.progress import bar
from coterie.select import contamination
from coterie.select.measures import measure, terms
from coterie.select.select_settings import NearDup, Select
from coterie.select.sketch import bands, shingles, short_values, values
from coterie.select.words import batches, words
from coterie.store import Action, Artifact, Store

_TOGETHER = 64
"""Documents in one compressed batch of ``texts.arrow``."""
_TEXTS = pa.schema([("prompt", pa.string()), ("text", pa.string())])


def profile(store: Store, documents: Artifact, select: Select, *, has_id: bool, label: str) -> Artifact:
    """Measure every document of a ``corpora`` artifact.

    Args:
        has_id: whether documents are known by an id of their own; by their content otherwise.

    Returns:
        a ``profiles`` artifact. Of the selection, only what it says about contamination and exact token counts decides.

    Raises:
        RequestError: evaluation texts or a tokenizer that cannot be read.
    """
    against = contamination.identity(store, select.keep.contamination)
    count = select.tokens if select.tokens is not None and select.tokens.sample is None else None
    tokenizer = tokenizer_file(count.tokenizer) if count is not None and count.tokenizer else None
    width = (select.keep.near_dup or NearDup()).bands
    spec = {"has_id": has_id, "contamination": against, "bands": list(width)}
    inputs = {"documents": documents.content("documents.parquet")}
    if tokenizer is not None:
        inputs["tokenizer"] = store.digest_file(tokenizer)
    action = Action("profiles", spec, inputs, libraries=("tokenizers",) if tokenizer else ())

    def build(folder: Path) -> None:
        runs = contamination.runs(select.keep.contamination)
        _write(folder, documents, has_id, runs, select, tokenizer, label)

    return store.make(action, build, label=f"profile {label}")


def _write(
    folder: Path,
    documents: Artifact,
    has_id: bool,
    runs: contamination.Runs | None,
    select: Select,
    tokenizer: Path | None,
    label: str,
) -> None:
    file = pq.ParquetFile(documents.file("documents.parquet"))
    extra = [name for name in file.schema_arrow.names if name not in OWN]
    total = file.metadata.num_rows
    width = (select.keep.near_dup or NearDup()).bands
    encode = encoder(tokenizer) if tokenizer is not None else None
    keys_N = np.zeros((width[0], total), dtype=np.uint64)
    short_N = np.zeros((total, width[0] * width[1]), dtype=np.uint8)
    sizes, buckets, counts, tables = [], [], [], []
    done = 0
    (folder / "terms").mkdir()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        pa.ipc.new_file(folder / "texts.arrow", _TEXTS, options=options) as texts,
        bar(f"profile {label}", total, "documents") as progress,
    ):
        for table in file.iter_batches(4096, columns=["id", "prompt", "text", "content", "split", *extra]):
            texts.write_table(pa.Table.from_batches([table.select(["prompt", "text"])]), max_chunksize=_TOGETHER)
            prompts, bodies = table["prompt"].to_pylist(), table["text"].to_pylist()
            whole = [t if p is None else f"{p}\n{t}" for p, t in zip(prompts, bodies, strict=True)]
            columns: list[dict[str, np.ndarray]] = []
            for part in batches(((t, len(t)) for t in whole), select.batch_bytes):
                found = words(part)
                made = shingles(found)
                value_rDb = values(made, *width)
                keys_N[:, done : done + len(part)] = bands(value_rDb).T
                short_N[done : done + len(part)] = short_values(value_rDb)
                measured = measure(part, found, made)
                if encode is not None:
                    measured["exact_tokens"] = np.array([len(e.ids) for e in encode.encode_batch(part)], dtype=np.int64)
                if runs is not None:
                    measured["contaminated"] = runs.share(found)
                columns.append(measured)
                size, bucket, count = terms(found)
                sizes.append(size)
                buckets.append(bucket)
                counts.append(count)
                done += len(part)
                progress.to(done)
            tables.append(_table(table, columns, extra, has_id))
    assert done == total
    pl.concat(tables).write_parquet(folder / "profile.parquet", compression="zstd", statistics=False)
    np.save(folder / "bands.npy", keys_N)
    np.save(folder / "short.npy", short_N)
    np.save(folder / "terms/first.npy", np.concatenate([[0], np.cumsum(np.concatenate([*sizes, np.zeros(0, int)]))]))
    np.save(folder / "terms/bucket.npy", np.concatenate([*buckets, np.zeros(0, np.uint16)]))
    np.save(folder / "terms/count.npy", np.concatenate([*counts, np.zeros(0, np.uint8)]))
    facts = {"documents": total, "columns": extra}
    (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True))


def _table(batch: pa.RecordBatch, columns: Sequence[dict[str, np.ndarray]], extra: list[str], has_id: bool) -> pl.DataFrame:
    content = batch["content"].to_pylist()
    ids = batch["id"].to_pylist() if has_id else [c[:16] for c in content]
    split = batch["split"].to_pylist()
    own = {
        "id": pl.Series(ids, dtype=pl.String),
        "key": key_of(ids),
        "content": np.array([int(c[:16], 16) for c in content], dtype=np.uint64),
        "split": np.array([SPLITS.index(s) for s in split], dtype=np.uint8),
    }
    measured = {name: np.concatenate([c[name] for c in columns]) for name in columns[0]} if columns else {}
    return pl.DataFrame(
        own | measured | {f"column {name}": pl.Series(batch[name].to_pylist(), dtype=pl.String) for name in extra}
    )


def key_of(ids: Sequence[str]) -> UInt64[np.ndarray, " N"]:
    """What an id is known by in draws: the same on every machine, whatever the order of the files."""
    joined = b"".join(hashlib.sha256(i.encode()).digest()[:8] for i in ids)
    return np.frombuffer(joined, dtype=">u8").astype(np.uint64)


def tokenizer_file(folder: str) -> Path:
    """Raises RequestError where there is none."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise RequestError(
            "no tokenizer.json", where="select.tokens.tokenizer", found=folder, do="name the tokenizer's folder"
        )
    return path


def encoder(path: Path) -> Any:
    """A tokenizer that neither cuts nor pads."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class Shard:
    """A profile and its documents, opened."""

    def __init__(self, documents: Artifact, made: Artifact) -> None:
        self.documents, self.artifact = documents, made

    def table(self, *columns: str) -> pl.DataFrame:
        """A row a document; all columns by default."""
        return pl.read_parquet(self.artifact.file("profile.parquet"), columns=list(columns) or None)

    def bands(self) -> np.ndarray:
        return np.load(self.artifact.file("bands.npy"), mmap_mode="r")

    @cached_property
    def short(self) -> np.ndarray:
        """One byte of each MinHash value, [N, b * r]."""
        return np.load(self.artifact.file("short.npy"), mmap_mode="r")

    @cached_property
    def terms(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First term of each document (and the number of terms), bucket, count."""
        names = ("first", "bucket", "count")
        first, bucket, count = (np.load(self.artifact.file(f"terms/{n}.npy"), mmap_mode="r") for n in names)
        return np.asarray(first), bucket, count

    @cached_property
    def _texts(self) -> pa.ipc.RecordBatchFileReader:
        return pa.ipc.open_file(pa.OSFile(str(self.artifact.file("texts.arrow"))))

    @cached_property
    def _starts(self) -> np.ndarray:
        """First row of each compressed batch: full but for the last of every 4,096."""
        reader, total = self._texts, self.artifact.facts["documents"]
        starts, row = [], 0
        while row < total:
            starts.append(row)
            row = min(row + _TOGETHER, (row // 4096 + 1) * 4096, total)
        assert len(starts) == reader.num_record_batches
        return np.array(starts, dtype=np.int64)

    def texts(self, rows: Sequence[int]) -> Iterator[tuple[str | None, str]]:
        """Prompt and text of some documents; each compressed batch is opened once for rows in order."""
        opened: tuple[int, Any] = (-1, None)
        for row in rows:
            batch = int(np.searchsorted(self._starts, row, side="right")) - 1
            if batch != opened[0]:
                opened = (batch, self._texts.get_batch(batch))
            place = int(row - self._starts[batch])
            yield opened[1]["prompt"][place].as_py(), opened[1]["text"][place].as_py()

    def whole(self, rows: Sequence[int]) -> list[str]:
        """What was profiled: prompt and text."""
        return [t if p is None else f"{p}\n{t}" for p, t in self.texts(rows)]
