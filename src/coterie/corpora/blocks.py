"""The blocks verb: documents become sequences of one length, packed, isolated from each other, with targets marked.

A document is [bos] ids [eos]. What is longer than a sequence is cut into pieces that overlap by one token, so that every
token but the first is a target exactly once. Positions restart at 0 with each piece, which keeps packed pieces apart in
attention. A prompt is no target; it is cut from its left until prompt and response fit, or to a quarter of the sequence
where the response alone does not fit.

`N` blocks, `T` positions, `P` pieces, `D` documents.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int32, Int64, UInt8

from coterie.corpora import arrays
from coterie.corpora.packing import pack
from coterie.corpora.template import plain, wanted
from coterie.errors import RequestError
from coterie.progress import bar
from coterie.recipe import Window
from coterie.store import Action, Artifact, Store

if TYPE_CHECKING:
    import polars as pl

_OWN = ("prompt", "text", "split", "order")


def blocks(
    store: Store,
    documents: Artifact,
    tokenizer: Artifact,
    *,
    split: str,
    length: int,
    window: Window | None = None,
    where: Mapping[str, Any] | None = None,
    limit_tokens: int | None = None,
    label: str,
) -> Artifact:
    """Pack one split of a corpus.

    Args:
        split: train, valid or test.
        length: tokens of a sequence.
        window: documents dated in [start, end) only.
        where: documents whose column has the value, or one of a list; id, time and the corpus's ``columns`` can be asked.
        limit_tokens: keep the first documents in order, up to so many tokens; the last one is cut to fit. A remainder
            that could hold no target is left over.
        label: corpus and split, for people.

    Returns:
        a ``blocks`` artifact.

    Raises:
        RequestError: no document is left; a window on a corpus without dates; a column that was not kept.
    """
    spec = {
        "split": split,
        "length": length,
        "window": window.model_dump(mode="json") if window else None,
        "where": {column: sorted(values, key=str) for column, values in wanted(where or {}).items()},
        "limit_tokens": limit_tokens,
    }
    inputs = {
        "documents": documents.content("documents.parquet"),
        "tokenizer": tokenizer.content("tokenizer.json", "facts.json"),
    }
    action = Action("blocks", spec, inputs, libraries=("tokenizers",))

    def build(folder: Path) -> None:
        chosen = _Choice(documents, split, window, where or {}, label)
        with bar(f"tokenize {label}", limit_tokens, "tokens") as progress:
            pieces = _Pieces(folder / "ids.temp", length, limit_tokens)
            for batch in chosen.batches():
                pieces.add(batch, tokenizer)
                progress.to(pieces.tokens)
                if pieces.full:
                    break
        if not pieces.length:
            raise chosen.nothing()
        _write(folder, pieces, chosen)

    return store.make(action, build, label=f"blocks {label}", tokens=limit_tokens)


class _Choice:
    """The documents that were asked for, in order."""

    def __init__(self, documents: Artifact, split: str, window: Window | None, where: Mapping[str, Any], label: str) -> None:
        self.documents, self.split, self.window, self.label = documents, split, window, label
        self.where = wanted(where)
        self.file = pq.ParquetFile(documents.file("documents.parquet"))
        names = self.file.schema_arrow.names
        self.kept = [name for name in names if name not in _OWN]
        for column in self.where:
            if column not in self.kept:
                raise RequestError(
                    f"{label}: the corpus did not keep a column {column!r}",
                    where="where",
                    expected=", ".join(self.kept),
                    do=f"add {column!r} to the corpus's columns",
                )

    def batches(self) -> Iterator[pa.Table]:
        for batch in self.file.iter_batches(1024):
            table = pa.table(batch)
            table = table.filter(pc.equal(table["split"], self.split))
            if self.window is not None:
                after = pc.greater_equal(table["time"], pa.scalar(self.window.start, pa.date32()))
                before = pc.less(table["time"], pa.scalar(self.window.end, pa.date32()))
                table = table.filter(pc.and_(after, before))
            for column, values in self.where.items():
                table = table.filter(pa.array([plain(v) in values for v in table[column].to_pylist()], pa.bool_()))
            if len(table):
                yield table

    def nothing(self) -> RequestError:
        """Why no document is left."""
        splits = self.documents.facts["splits"]
        there = splits[self.split]
        counts = ", ".join(f"{name} {entry['documents']:,}" for name, entry in splits.items())
        if not there["documents"]:
            return RequestError(
                f"{self.label}: no documents in the {self.split} split",
                where=f"split.{self.split}",
                found=counts,
                do="give the split a larger share, or the corpus more documents",
            )
        if self.window is not None and there["first"] is None:
            return RequestError(f"{self.label}: a window on a corpus without dates", do="set the corpus's time column")
        asked = [f"window [{self.window.start}, {self.window.end})"] if self.window else []
        asked += [f"{column} in {sorted(map(str, values))}" for column, values in self.where.items()]
        dates = f" dated {there['first']} to {there['last']}" if there["first"] else ""
        return RequestError(
            f"{self.label}: no documents for {' and '.join(asked) or 'the token limit'}",
            where="window" if self.window else "where" if self.where else "limit",
            found=f"{there['documents']:,} documents in the {self.split} split{dates}",
            do="ask for what is there",
        )


class _Pieces:
    """Token ids on disk, and the pieces to be packed."""

    def __init__(self, path: Path, capacity: int, limit: int | None) -> None:
        self.path, self.capacity = path, capacity
        self.left = limit if limit is not None else 1 << 62
        self.full = False
        self.tokens, self.stored = 0, 0
        self.start, self.length, self.first_target, self.document = array("q"), array("q"), array("q"), array("q")
        self.tables: list[pa.Table] = []
        self.targets = array("q")
        self.cut_prompt_tokens = self.cut_documents = 0
        self._open: tuple[Any, int, int] | None = None

    def add(self, table: pa.Table, tokenizer: Artifact) -> None:
        """Tokenize documents and cut them."""
        encode, bos, eos = self._tokenizer(tokenizer)
        prompts = table["prompt"].to_pylist()
        prompt_ids = encode([p or "" for p in prompts]) if any(prompts) else [[]] * len(prompts)
        ids = array("i")
        taken = 0
        for prompt, text in zip(prompt_ids, encode(table["text"].to_pylist()), strict=True):
            room = self.capacity - 2 - len(text)
            room = room if room >= 0 else self.capacity // 4
            if len(prompt) > room:
                self.cut_prompt_tokens += len(prompt) - room
                prompt = prompt[len(prompt) - room :]
            begin = len(ids)
            ids.append(bos)
            ids.extend(prompt)
            ids.extend(text)
            ids.append(eos)
            if not self._cut(self.stored + begin, len(ids) - begin, 1 + len(prompt)):
                break
            taken += 1
            if self.full:
                break
        with self.path.open("ab") as file:
            ids.tofile(file)
        self.stored += len(ids)
        self.tables.append(table.slice(0, taken))

    def _cut(self, begin: int, size: int, given: int) -> bool:
        """One document of ``size`` tokens, the first ``given`` of which are no targets. Whether any of it was taken."""
        targets, number = 0, len(self.targets)
        for offset in range(0, size - 1, self.capacity - 1):
            length = min(self.capacity, size - offset, self.left)
            first = max(1, given - offset)
            if length <= first:
                self.full = True
                break
            self.start.append(begin + offset)
            self.length.append(length)
            self.first_target.append(first)
            self.document.append(number)
            targets += length - first
            self.tokens += length
            self.left -= length
        self.full = self.full or self.left < 2
        if targets:
            self.targets.append(targets)
            self.cut_documents += size > self.capacity
        return bool(targets)

    def _tokenizer(self, artifact: Artifact) -> tuple[Any, int, int]:
        if self._open is None:
            from tokenizers import Tokenizer

            loaded = Tokenizer.from_file(str(artifact.file("tokenizer.json")))
            loaded.no_truncation()
            loaded.no_padding()
            loaded.encode_special_tokens = True  # "<|endoftext|>" written in a document is text, not the end of one

            def encode(texts: list[str]) -> list[list[int]]:
                return [e.ids for e in loaded.encode_batch_fast(texts, add_special_tokens=False)]

            self._open = encode, artifact.facts["bos_id"], artifact.facts["eos_id"]
        return self._open


def _write(folder: Path, pieces: _Pieces, chosen: _Choice) -> None:
    T = pieces.capacity
    start_P, length_P, first_P, document_P = (
        np.frombuffer(a, dtype=np.int64) for a in (pieces.start, pieces.length, pieces.first_target, pieces.document)
    )
    block_P = pack(length_P, T)
    N = int(block_P.max()) + 1
    flat = np.memmap(pieces.path, np.int32, "r")
    made = arrays.create(
        folder / "blocks.safetensors",
        {
            **{name: (np.dtype("<i4"), (N, T)) for name in ("ids", "position", "document")},
            "target": (np.dtype("u1"), (N, T)),
        },
    )
    by_block = np.argsort(block_P, kind="stable")
    bounds = np.searchsorted(block_P[by_block], np.arange(0, N + 1024, 1024))
    for low, (begin, end) in zip(range(0, N, 1024), pairwise(bounds), strict=True):
        p = by_block[begin:end]
        rows = min(1024, N - low)
        size = length_P[p]
        inner = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        # a piece stands right behind the pieces before it in its block
        used = np.cumsum(size) - size
        head = np.searchsorted(block_P[p], block_P[p])
        place = np.repeat((block_P[p] - low) * T + used - used[head], size) + inner
        out = {name: np.zeros(rows * T, dtype=array.dtype) for name, array in made.items()}
        out["document"][:] = -1
        out["ids"][:] = 0
        out["ids"][place] = flat[np.repeat(start_P[p], size) + inner]
        out["position"][place] = inner
        out["document"][place] = np.repeat(document_P[p], size)
        out["target"][place] = inner >= np.repeat(first_P[p], size)
        for name, array_NT in made.items():
            array_NT[low : low + rows] = out[name].reshape(rows, T)
    for array_NT in made.values():
        array_NT.flush()
    del flat
    pieces.path.unlink()
    _write_documents(folder, pieces, chosen)
    tokens = int(length_P.sum())
    dates = [e for e in pc.min_max(_column(pieces, "time")).as_py().values() if e is not None]
    facts = {
        "blocks": N,
        "length": T,
        "tokens": tokens,
        "targets": int((length_P - first_P).sum()),
        "documents": len(pieces.targets),
        "fill": tokens / (N * T),
        "cut_prompt_tokens": pieces.cut_prompt_tokens,
        "cut_documents": pieces.cut_documents,
        "first": min(dates).isoformat() if dates else None,
        "last": max(dates).isoformat() if dates else None,
    }
    (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True))


def _column(pieces: _Pieces, name: str) -> pa.ChunkedArray:
    return pa.concat_tables(pieces.tables)[name]


def _write_documents(folder: Path, pieces: _Pieces, chosen: _Choice) -> None:
    table = pa.concat_tables(pieces.tables).select(chosen.kept)
    table = table.add_column(0, "row", pa.array(np.arange(len(table)), pa.int32()))
    table = table.append_column("tokens", pa.array(np.frombuffer(pieces.targets, dtype=np.int64)))
    pq.write_table(table, folder / "documents.parquet", compression="zstd")


@dataclass(frozen=True)
class Blocks:
    """Packed sequences, memory-mapped. Pieces of documents are apart: ``position`` restarts at 0 with each."""

    path: Path
    ids: Int32[np.ndarray, "N T"]
    """Token ids; padding is 0."""
    position: Int32[np.ndarray, "N T"]
    """Place in the piece; padding is 0."""
    target: UInt8[np.ndarray, "N T"]
    """1 where the token is predicted and counted: not padding, not prompt, not a piece's first token."""
    document: Int32[np.ndarray, "N T"]
    """Row of ``documents``; -1 for padding."""

    @classmethod
    def open(cls, artifact: Artifact) -> Blocks:
        return cls(artifact.path, **arrays.opened(artifact.file("blocks.safetensors")))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def tokens_per_block(self) -> Int64[np.ndarray, " N"]:
        """Tokens of each block, padding not counted."""
        return (self.document >= 0).sum(axis=1, dtype=np.int64)

    @cached_property
    def documents(self) -> pl.DataFrame:
        """row, id, content, time, tokens (its targets), and the columns the corpus keeps."""
        import polars as pl

        return pl.read_parquet(self.path / "documents.parquet")
