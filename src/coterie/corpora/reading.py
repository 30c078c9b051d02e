"""One pass over a corpus's rows: every one is kept, filtered or quarantined, and the balance is struck at the end.

What is kept goes to a few parts on disk, chosen by the first bits of the content hash; each part is then sorted and
appended. So a corpus larger than memory comes out in the order of its content's hash, and whoever needs the first N
documents reads the first N. The price: everything is written twice.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from coterie.corpora.formats import FORMATS
from coterie.corpora.row_plan import Document, Plan
from coterie.corpora.source_file import Bad, Item, Source
from coterie.corpora.splits import SPLITS, assign, content_hash, order_of, within
from coterie.corpora.template import RowError
from coterie.errors import RequestError
from coterie.spec.json_types import Figures

_PART = 256 << 20
"""Bytes of text in a part that is sorted in memory."""


class Reading:
    """The state of one pass.

    Args:
        folder: receives ``documents.parquet``, ``quarantine.jsonl`` and ``facts.json``.
        size: bytes of the sources, for the number of parts.
    """

    def __init__(self, plan: Plan, folder: Path, size: int) -> None:
        self.plan, self.folder = plan, folder
        self.read, self.bad, self.reasons = 0, 0, Counter[str]()
        self.first: list[tuple[str, str]] = []
        self.seen: set[str] = set()
        self._date_kind: tuple[str, str] | None = None
        self._content: list[bytes] = []
        self._groups: list[str | None] = []
        types = {"time": pa.date32(), "row": pa.int64(), "order": pa.uint64()}
        names = ["id", "prompt", "text", "time", "content", "order", "row", *plan.names]
        schema = pa.schema([(name, types.get(name, pa.string())) for name in names])
        self._bits = min(8, (size // _PART).bit_length())
        self._parts = [RowFile(folder / f"part-{i}.parquet", schema) for i in range(1 << self._bits)]
        self._quarantine = (folder / "quarantine.jsonl").open("w", encoding="utf-8")

    def take(self, source: Source, number: int, item: Item) -> None:
        """One row of the ``number``-th file.

        Raises:
            RequestError: more rows are bad than the recipe bears, or dates are of several types.
        """
        self.read += 1
        if not isinstance(item, Bad):
            try:
                document = self.plan.document(item.values)
            except RowError as error:
                raw = item.raw if item.raw is not None else json.dumps(item.values, default=str).encode()
                item = Bad(item.line, item.offset, str(error), raw)
            else:
                if isinstance(document, str):
                    self.reasons[document] += 1
                    return
                if document.time is not None:
                    self._same_type(item.values[str(self.plan.corpus.time)], f"{source.path}:{item.line}")
                default = source.name if FORMATS[source.format].one_document else f"{number}:{item.line}"
                self._keep(document, document.id if document.id is not None else default)
                return
        self._set_aside(source, item)

    def _keep(self, document: Document, name: str) -> None:
        content = content_hash(document.prompt, document.text)
        order, row = order_of(content), len(self._content)
        self._content.append(content)
        self._groups.append(document.group)
        own = {"id": name, "content": content.hex(), "order": order, "row": row}
        own |= {key: getattr(document, key) for key in ("prompt", "text", "time")}
        values = own | dict(zip(self.plan.names, document.extra, strict=True))
        self._parts[order >> (64 - self._bits)].add(values, len(document.text) + len(document.prompt or ""))

    def _set_aside(self, source: Source, item: Bad) -> None:
        self.bad += 1
        if len(self.first) < 3:
            self.first.append((f"{source.path}:{item.line}", item.reason))
        raw = item.raw or b""
        try:
            evidence = {"raw": raw.decode()}
        except UnicodeDecodeError:
            evidence = {"raw_base64": base64.b64encode(raw).decode()}
        entry = {"file": str(source.path), "line": item.line, "offset": item.offset, "reason": item.reason, **evidence}
        self._quarantine.write(json.dumps(entry, ensure_ascii=False) + "\n")
        if self.bad > self.plan.corpus.bad_rows.most:
            self._stop_if_bad()

    def _stop_if_bad(self) -> None:
        if self.seen:
            self.plan.check_columns(self.seen, self.read)
        self.plan.tolerate(self.read, self.bad, self.first)

    def _same_type(self, value: object, place: str) -> None:
        kind = {int: "a number", str: "a string"}.get(type(value), "a date")
        if self._date_kind is None:
            self._date_kind = kind, place
        elif self._date_kind[0] != kind:
            raise RequestError(
                "a time column of mixed types",
                where=f"{place} ({self.plan.key}.time)",
                expected=f"{self._date_kind[0]}, as in {self._date_kind[1]}",
                found=kind,
                do="write all dates in one way",
            )

    def finish(self) -> None:
        """Splits, limits, order; the files; the balance.

        Raises:
            RequestError: too many bad rows, a column that no row has, nothing left.
        """
        self._quarantine.close()
        self._stop_if_bad()
        corpus = self.plan.corpus
        if not self._content:
            why = [f"{count:,} filtered ({reason})" for reason, count in self.reasons.items()]
            if self.bad:
                why.append(f"{self.bad:,} cannot be read, the first {' '.join(self.first[0])}")
            raise RequestError(
                f"0 of {self.read:,} rows are usable",
                where=self.plan.key,
                found=", ".join(why),
                do=f"check {self.plan.key}.where" if corpus.where else "check the data",
            )
        split_D = assign(self._content, self._groups if corpus.split.group is not None else None, corpus.split)
        order_D = np.array([order_of(c) for c in self._content], dtype=np.uint64)
        keep_D = within(order_D, split_D, corpus.limit)
        kept = int(keep_D.sum())
        if kept < len(keep_D):
            self.reasons["limit"] = len(keep_D) - kept
        filtered = self.reasons.total()
        assert self.read == kept + filtered + self.bad
        facts = {
            "read": self.read,
            "kept": kept,
            "filtered": filtered,
            "quarantined": self.bad,
            "duplicates": kept - len({self._content[i] for i in np.flatnonzero(keep_D)}),
            "reasons": dict(self.reasons),
            "splits": self._write(split_D, keep_D),
        }
        (self.folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True))

    def _write(self, split_D: np.ndarray, keep_D: np.ndarray) -> dict[str, Figures]:
        """Write the documents, part by part, in order; say what each split holds."""
        splits = {name: SplitFacts() for name in SPLITS}
        writer: pq.ParquetWriter | None = None
        for part in self._parts:
            table = part.read()
            row = table["row"].to_numpy()
            table = table.drop_columns("row").add_column(4, "split", pa.array(np.array(SPLITS)[split_D[row]], pa.string()))
            table = table.filter(pa.array(keep_D[row]))
            table = table.sort_by([(column, "ascending") for column in ("order", "prompt", "text", "id")])
            for name, entry in splits.items():
                entry.add(table.filter(pc.equal(table["split"], name)))
            writer = writer or pq.ParquetWriter(self.folder / "documents.parquet", table.schema, compression="zstd")
            writer.write_table(table, row_group_size=8192)
        assert writer is not None
        writer.close()
        return {name: entry.figures() for name, entry in splits.items()}


class SplitFacts:
    """What a split holds, counted as its documents come."""

    def __init__(self) -> None:
        self._content: list[bytes] = []
        self._dates: set[date] = set()
        self._characters = 0

    def add(self, documents: pa.Table) -> None:
        """Count documents of the split."""
        contents, prompts, texts = (documents[name].to_pylist() for name in ("content", "prompt", "text"))
        for content, prompt, text in zip(contents, prompts, texts, strict=True):
            self._content.append(bytes.fromhex(content) + hashlib.sha256(f"{prompt}\0{text}".encode()).digest())
            self._characters += len(text) + len(prompt or "")
        self._dates |= {day for day in pc.min_max(documents["time"]).as_py().values() if day is not None}

    def figures(self) -> Figures:
        """Documents, a digest of their contents, characters, the first and the last date."""
        return {
            "documents": len(self._content),
            "digest": hashlib.sha256(b"".join(sorted(self._content))).hexdigest(),
            "characters": self._characters,
            "first": min(self._dates).isoformat() if self._dates else None,
            "last": max(self._dates).isoformat() if self._dates else None,
        }


class RowFile:
    """Rows on their way to a Parquet file; those that come to less than ``most`` wait in memory."""

    def __init__(
        self, path: Path, schema: pa.Schema | None = None, *, most: int = 4 << 20, compression: str = "lz4"
    ) -> None:
        self.path, self.schema, self.most, self.compression = path, schema, most, compression
        self._rows: list[Mapping[str, object]] = []
        self._size = 0
        self._writer: pq.ParquetWriter | None = None

    def add(self, row: Mapping[str, object], size: int = 1) -> None:
        self._rows.append(row)
        self._size += size
        if self._size >= self.most:
            self._flush()

    def _flush(self) -> None:
        table = pa.Table.from_pylist(self._rows, schema=self.schema)
        self.schema = table.schema
        self._writer = self._writer or pq.ParquetWriter(self.path, table.schema, compression=self.compression)
        self._writer.write_table(table)
        self._rows, self._size = [], 0

    def close(self) -> None:
        """Write what is left."""
        if self._rows:
            self._flush()
        assert self._writer is not None
        self._writer.close()

    def read(self) -> pa.Table:
        """Everything that was added; the file is gone afterwards."""
        if self._writer is None:
            return pa.Table.from_pylist(self._rows, schema=self.schema)
        self.close()
        table = pq.read_table(self.path)
        self.path.unlink()
        return table
