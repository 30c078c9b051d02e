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
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int32, Int64, UInt8, UInt64

from coterie.corpora.packing import plain_tokenizer
from coterie.corpora.row_plan import OWN, USERS
from coterie.corpora.splits import SPLITS
from coterie.errors import RequestError
from coterie.progress import bar
from coterie.select import contamination
from coterie.select.measures import measure, terms
from coterie.select.select_settings import NearDup, Select
from coterie.select.sketch import bands, shingles, short_values, values
from coterie.select.words import batches, mixed, words
from coterie.spec.json_types import Settings
from coterie.store import Action, Artifact, Store

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TOGETHER = 64
"""Documents in one compressed batch of ``texts.arrow``."""
_TEXTS = pa.schema([("prompt", pa.string()), ("text", pa.string())])


def profile(
    store: Store, documents: Artifact, select: Select, *, has_id: bool, label: str, own: Sequence[str] = ()
) -> Artifact:
    """Measure every document of a ``corpora`` artifact.

    Args:
        has_id: whether documents are known by an id of their own; by their content otherwise.
        own: of the documents' id and time, what the selection reads as a column.

    Returns:
        a ``profiles`` artifact. Of the selection, only what it says about contamination and exact token counts decides.

    Raises:
        RequestError: evaluation texts or a tokenizer that cannot be read.
    """
    against = contamination.identity(store, select.keep.contamination)
    count = select.tokens if select.tokens is not None and select.tokens.sample is None else None
    tokenizer = tokenizer_file(count.tokenizer) if count is not None and count.tokenizer else None
    width = (select.keep.near_dup or NearDup()).bands
    spec: Settings = {"has_id": has_id, "contamination": against, "bands": list(width)}
    if own:
        spec["own"] = sorted(own)
    inputs = {"documents": documents.content("documents.parquet")}
    if tokenizer is not None:
        inputs["tokenizer"] = store.digest_file(tokenizer)
    action = Action("profiles", spec, inputs, libraries=("tokenizers",) if tokenizer else ())

    def build(folder: Path) -> None:
        file = pq.ParquetFile(documents.file("documents.parquet"))
        runs = contamination.runs(select.keep.contamination)
        made = _Profile(file, width, runs, plain_tokenizer(tokenizer) if tokenizer is not None else None, has_id, own)
        with bar(f"profile {label}", made.total, "documents") as progress:
            for batch in made.batches(folder / "texts.arrow"):
                whole = map(joined, batch["prompt"].to_pylist(), batch["text"].to_pylist())
                for texts in batches(whole, select.batch_bytes):
                    made.measure(texts)
                    progress.to(made.done)
                made.keep(batch)
        made.write(folder)

    return store.make(action, build, label=f"profile {label}")


class _Profile:
    """The columns of a profile on their way to files."""

    def __init__(
        self,
        file: pq.ParquetFile,
        width: tuple[int, int],
        runs: contamination.Runs | None,
        tokenizer: Tokenizer | None,
        has_id: bool,
        own: Sequence[str],
    ) -> None:
        self.file, self.width, self.runs, self.tokenizer, self.has_id = file, width, runs, tokenizer, has_id
        self.extra = [name for name in file.schema_arrow.names if name not in OWN or name in own]
        self.total, self.done = file.metadata.num_rows, 0
        self.band_bN = np.zeros((width[0], self.total), dtype=np.uint64)
        self.short_N = np.zeros((self.total, width[0] * width[1]), dtype=np.uint8)
        self.terms: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.measured: list[dict[str, np.ndarray]] = []
        self.tables: list[pl.DataFrame] = []

    def batches(self, path: Path) -> Iterator[pa.RecordBatch]:
        """The documents; their texts go to a file of their own."""
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        columns = list(dict.fromkeys(["id", "prompt", "text", "content", "split", *self.extra]))
        with pa.ipc.new_file(path, _TEXTS, options=options) as file:
            for batch in self.file.iter_batches(4096, columns=columns):
                file.write_table(pa.Table.from_batches([batch.select(["prompt", "text"])]), max_chunksize=_TOGETHER)
                yield batch

    def measure(self, texts: list[str]) -> None:
        """Measure some documents, which follow those that are done."""
        found = words(texts)
        made = shingles(found)
        value_rDb = values(made, *self.width)
        rows = slice(self.done, self.done + len(texts))
        self.band_bN[:, rows] = bands(value_rDb).T
        self.short_N[rows] = short_values(value_rDb)
        columns = measure(texts, found, made)
        if self.tokenizer is not None:
            columns["exact_tokens"] = np.array([len(e.ids) for e in self.tokenizer.encode_batch(texts)], dtype=np.int64)
        if self.runs is not None:
            columns["contaminated"] = self.runs.share(found)
        self.measured.append(columns)
        self.terms.append(terms(found))
        self.done += len(texts)

    def keep(self, batch: pa.RecordBatch) -> None:
        """Put what was measured of a batch beside its own columns."""
        content = batch["content"].to_pylist()
        ids = batch["id"].to_pylist() if self.has_id else [c[:16] for c in content]
        own = {
            "id": pl.Series(ids, dtype=pl.String),
            "key": key_of(ids),
            "content": np.array([int(c[:16], 16) for c in content], dtype=np.uint64),
            "split": np.array([SPLITS.index(s) for s in batch["split"].to_pylist()], dtype=np.uint8),
        }
        names = self.measured[0] if self.measured else ()
        measured = {name: np.concatenate([columns[name] for columns in self.measured]) for name in names}
        extra = {USERS + name: pl.Series(batch[name].cast(pa.string()).to_pylist(), dtype=pl.String) for name in self.extra}
        self.tables.append(pl.DataFrame(own | measured | extra))
        self.measured = []

    def write(self, folder: Path) -> None:
        assert self.done == self.total
        pl.concat(self.tables).write_parquet(folder / "profile.parquet", compression="zstd", statistics=False)
        np.save(folder / "bands.npy", self.band_bN)
        np.save(folder / "short.npy", self.short_N)
        (folder / "terms").mkdir()
        none = np.zeros(1, int), np.zeros(0, np.uint16), np.zeros(0, np.uint8)
        sizes, buckets, counts = map(np.concatenate, zip(none, *self.terms, strict=True))
        for name, column in (("first", np.cumsum(sizes)), ("bucket", buckets), ("count", counts)):
            np.save(folder / f"terms/{name}.npy", column)
        facts = {"documents": self.total, "columns": self.extra}
        (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True))


def key_of(ids: Sequence[str]) -> UInt64[np.ndarray, " N"]:
    """What an id is known by in draws: the same on every machine, whatever the order of the files."""
    joined = b"".join(hashlib.sha256(i.encode()).digest()[:8] for i in ids)
    return np.frombuffer(joined, dtype=">u8").astype(np.uint64)


def sample(
    key_N: UInt64[np.ndarray, " N"], content_N: UInt64[np.ndarray, " N"], size: int, seed: int
) -> Int64[np.ndarray, " n"]:
    """Rows of distinct content that come first in an order that depends on keys, contents and seed alone."""
    order = np.lexsort((content_N, mixed(key_N ^ np.uint64(seed % 2**63 * 0x9E3779B9 % 2**64))))
    _, once = np.unique(content_N[order], return_index=True)
    return order[np.sort(once)[:size]]


def tokenizer_file(folder: str) -> Path:
    """Raises RequestError where there is none."""
    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise RequestError(
            "no tokenizer.json", where="select.tokens.tokenizer", found=folder, do="name the tokenizer's folder"
        )
    return path


class Shard:
    """A profile and its documents, opened."""

    def __init__(self, documents: Artifact, made: Artifact) -> None:
        self.documents, self.artifact = documents, made

    def table(self, *columns: str) -> pl.DataFrame:
        """A row a document; all columns by default."""
        return pl.read_parquet(self.artifact.file("profile.parquet"), columns=list(columns) or None, glob=False)

    def bands(self) -> UInt64[np.ndarray, "b N"]:
        return np.load(self.artifact.file("bands.npy"), mmap_mode="r")

    @cached_property
    def short(self) -> UInt8[np.ndarray, "N br"]:
        """One byte of each MinHash value."""
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
        for batch, group in groupby(rows, lambda row: int(np.searchsorted(self._starts, row, side="right")) - 1):
            opened = self._texts.get_batch(batch)
            for row in group:
                place = int(row - self._starts[batch])
                yield opened["prompt"][place].as_py(), opened["text"][place].as_py()

    def whole(self, rows: Sequence[int]) -> list[str]:
        """What was profiled: prompt and text."""
        return [joined(prompt, text) for prompt, text in self.texts(rows)]


Places = Int32[np.ndarray, "n 2"]
"""Of some documents, the part and the row in it."""


def by_part(where: Places) -> Iterator[tuple[int, np.ndarray]]:
    """The parts that some documents lie in, each with the numbers of its documents."""
    for part in np.unique(where[:, 0]).tolist():
        yield part, np.flatnonzero(where[:, 0] == part)


def prompts_and_texts(shards: Sequence[Shard], where: Places) -> list[tuple[str | None, str]]:
    """Prompt and text of some documents, each compressed batch opened once."""
    out: list[tuple[str | None, str]] = [(None, "")] * len(where)
    for part, mine in by_part(where):
        mine = mine[np.argsort(where[mine, 1], kind="stable")]
        for i, found in zip(mine.tolist(), shards[part].texts(where[mine, 1].tolist()), strict=True):
            out[i] = found
    return out


def texts_of(shards: Sequence[Shard], where: Places) -> list[str]:
    """What was profiled of some documents: prompt and text."""
    return [joined(prompt, text) for prompt, text in prompts_and_texts(shards, where)]


def joined(prompt: str | None, text: str) -> str:
    return text if prompt is None else f"{prompt}\n{text}"
