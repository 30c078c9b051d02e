"""The blocks verb: documents become sequences of one length, packed, isolated from each other, with targets marked.

Positions restart at 0 with each piece of a document, which keeps packed pieces apart in attention.

`N` blocks, `T` positions, `P` pieces.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int32, Int64, UInt8

from coterie.corpora import arrays
from coterie.corpora.conversations import COLUMN, template_digest
from coterie.corpora.packing import Encoder, Pieces, pack
from coterie.corpora.row_plan import USERS, find_column
from coterie.corpora.splits import SPLITS
from coterie.corpora.template import plain, wanted
from coterie.corpora.windows import Window
from coterie.errors import RequestError
from coterie.progress import bar
from coterie.spec.json_types import Figures
from coterie.store import Action, Artifact, Store

if TYPE_CHECKING:
    import polars as pl

_TEXT = ("prompt", "text", "split", "order", COLUMN)
"""Columns of a corpus that its blocks do not repeat."""
_AT_ONCE = 1024
"""Blocks that are put together in memory."""


def pack_blocks(
    store: Store,
    documents: Artifact,
    tokenizer: Artifact,
    *,
    split: str,
    length: int,
    window: Window | None = None,
    where: Mapping[str, object] | None = None,
    limit_tokens: int | None = None,
    chat: bool = False,
    label: str,
) -> Artifact:
    """Pack one split of a corpus.

    Args:
        split: train, valid or test.
        length: tokens of a sequence.
        window: documents dated in [start, end) only.
        where: documents whose column has the value, or one of a list; id, time and the corpus's ``columns`` may be named.
        limit_tokens: keep the first documents in order, up to so many tokens; the last one is cut to fit. A remainder
            that could hold no target is left over.
        chat: the documents are conversations; the tokenizer's chat template renders them.
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
    if chat:
        inputs["chat_template"] = template_digest(tokenizer)
    action = Action("blocks", spec, inputs, libraries=("tokenizers",))

    def build(folder: Path) -> None:
        chosen = _Choice(documents, split, window, where or {}, label)
        pieces, encode = Pieces(folder / "ids.temp", length, limit_tokens), Encoder(tokenizer)
        with bar(f"tokenize {label}", limit_tokens, "tokens") as progress:
            for table in chosen.tables():
                pieces.add(table, encode)
                progress.to(pieces.tokens)
                if pieces.full:
                    break
        if not pieces.tokens:
            raise chosen.nothing()
        facts = _write_blocks(folder / "blocks.safetensors", pieces)
        pieces.path.unlink()
        facts |= _write_documents(folder / "documents.parquet", pieces, chosen.kept)
        (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True))

    return store.make(action, build, label=f"blocks {label}", tokens=limit_tokens)


class _Choice:
    """The documents that a request leaves, in order."""

    def __init__(
        self, documents: Artifact, split: str, window: Window | None, where: Mapping[str, object], label: str
    ) -> None:
        self.documents, self.split, self.window, self.label = documents, split, window, label
        self.file = pq.ParquetFile(documents.file("documents.parquet"))
        names = self.file.schema_arrow.names
        self.kept = [name for name in names if name not in _TEXT]
        self.where = {find_column(column, self.kept): values for column, values in wanted(where).items()}
        for column in self.where:
            if column not in self.kept:
                raise RequestError(
                    f"{label}: the corpus did not keep a column {column!r}",
                    where="where",
                    expected=", ".join(self.kept),
                    do=f"add {column!r} to the corpus's columns",
                )

    def tables(self) -> Iterator[pa.Table]:
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
        counts = ", ".join(f"{name} {splits[name]['documents']:,}" for name in SPLITS)
        if not there["documents"]:
            return RequestError(
                f"{self.label}: no documents in the {self.split} split",
                where=f"split.{self.split}",
                found=counts,
                do="give the split a larger share, or the corpus more documents",
            )
        if self.window is not None and there["first"] is None:
            return RequestError(f"{self.label}: a window on a corpus without dates", do="set the corpus's time column")
        conditions = [f"window [{self.window.start}, {self.window.end})"] if self.window else []
        conditions += [f"{column} in {sorted(map(str, values))}" for column, values in self.where.items()]
        dates = f" dated {there['first']} to {there['last']}" if there["first"] else ""
        return RequestError(
            f"{self.label}: no documents for {' and '.join(conditions) or 'the token limit'}",
            where="window" if self.window else "where" if self.where else "limit",
            found=f"{there['documents']:,} documents in the {self.split} split{dates}",
            do="ask for what is there",
        )


def _write_blocks(path: Path, pieces: Pieces) -> Figures:
    """Pack and write, some blocks at a time."""
    T = pieces.capacity
    start_P, length_P, first_target_P, document_P = pieces.cut_P4.T
    block_P = pack(length_P, T)
    N = int(block_P.max()) + 1
    types: dict[str, np.dtype] = {
        **dict.fromkeys(("ids", "position", "document"), np.dtype("<i4")),
        "target": np.dtype("u1"),
    }
    ids, by_block = pieces.ids, np.argsort(block_P, kind="stable")
    lows = range(0, N, _AT_ONCE)
    bounds = np.searchsorted(block_P[by_block], [*lows, N])
    with arrays.written(path, types, (N, T)) as put:
        for low, (begin, end) in zip(lows, pairwise(bounds), strict=True):
            p = by_block[begin:end]
            block, size = block_P[p] - low, length_P[p]
            before = np.cumsum(size) - size
            within = np.arange(size.sum()) - np.repeat(before, size)
            offset = before - before[np.searchsorted(block, block)]  # tokens of the pieces before it in its block
            place = np.repeat(block * T + offset, size) + within
            rows = {name: np.zeros(min(_AT_ONCE, N - low) * T, dtype) for name, dtype in types.items()}
            rows["document"][:] = -1
            signed = ids[np.repeat(start_P[p], size) + within]
            rows["ids"][place] = np.where(signed < 0, ~signed, signed)
            rows["position"][place] = within
            rows["document"][place] = np.repeat(document_P[p], size)
            rows["target"][place] = (within >= np.repeat(first_target_P[p], size)) & (signed >= 0)
            for name, values in rows.items():
                put(name, low, values.reshape(-1, T))
    return {
        "blocks": N,
        "length": T,
        "tokens": pieces.tokens,
        "targets": int(pieces.targets_D.sum()),
        "documents": len(pieces.targets_D),
        "fill": pieces.tokens / (N * T),
        "cut_prompt_tokens": pieces.cut_prompt_tokens,
        "cut_documents": pieces.cut_documents,
    }


def _write_documents(path: Path, pieces: Pieces, kept: list[str]) -> Figures:
    """Write who the documents are, without their text."""
    table = pa.concat_tables(pieces.tables).select(kept)
    table = table.rename_columns([USERS + name if name == "tokens" else name for name in kept])
    table = table.add_column(0, "row", pa.array(np.arange(len(table)), pa.int32()))
    pq.write_table(table.append_column("tokens", pa.array(pieces.targets_D)), path, compression="zstd")
    dates = pc.min_max(table["time"]).as_py()
    return {"first": dates["min"] and dates["min"].isoformat(), "last": dates["max"] and dates["max"].isoformat()}


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

        return pl.read_parquet(self.path / "documents.parquet", glob=False)
