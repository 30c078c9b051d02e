"""Texts at hand, such as a list of strings, as a corpus: they are written down, and read as any corpus is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from coterie.corpora.corpus_settings import Documents, Split
from coterie.errors import RequestError

if TYPE_CHECKING:
    from datasets import Dataset

Texts: TypeAlias = "Sequence[str] | Sequence[Mapping[str, object]] | Dataset | Documents | str | Path"
"""Texts; or rows ``{"text": ...}`` or ``{"prompt": ..., "response": ...}``, with ``"time"`` where dates matter, as a list or
a `datasets.Dataset`; or a corpus as in a recipe, or its path."""


@dataclass(frozen=True)
class Given:
    """A corpus that was given in Python."""

    corpus: Documents
    split: str | None = None
    """The one split that holds all of it; None: it is split as the corpus says."""


def given(
    texts: Texts, folder: Path, *, where: str, text: str | None = None, time: str | None = None, by: str | None = None
) -> Given:
    """Texts as a corpus. A corpus with settings is split as they say; of all else every document is used.

    Args:
        folder: where texts that are in memory are written.
        where: what they are called, for messages.
        text: column of the text, ``text`` by default.
        time: column of the date, ``time`` by default if every row has one.
        by: a further column to keep.

    Raises:
        RequestError: there are none, or one is no text.
    """
    if isinstance(texts, Documents):
        if text is not None or time is not None:
            raise RequestError("a corpus with settings names its own columns", where=where, do="set text and time there")
        return Given(texts.model_copy(update={"columns": tuple(dict.fromkeys([*texts.columns, *_kept(by)]))}))
    if isinstance(texts, str | Path):
        path, columns = Path(texts).expanduser(), None
    elif isinstance(texts, Sequence):
        path, columns = _written(texts, folder, where, text or "text")
    elif hasattr(texts, "save_to_disk"):
        path, columns = folder / f"dataset-{texts._fingerprint}", set(texts.column_names)
        if not path.is_dir():
            texts.save_to_disk(path)
    else:
        raise RequestError(
            "these are no texts",
            where=where,
            expected="a list of texts, a datasets.Dataset, coterie.Documents or a path",
            found=type(texts).__name__,
            do="give list(...) of what can be gone through once only",
        )
    settings: dict[str, object] = {"path": str(path), "text": text, "time": time, "columns": _kept(by)}
    if columns is not None:
        if text is None and {"prompt", "response"} <= columns:
            settings |= {"prompt": "prompt", "response": "response"}
        settings["time"] = time or ("time" if "time" in columns else None)
        settings["id"] = "id" if "id" in columns else None
    return Given(Documents.model_validate(settings | {"split": Split(valid=0, test=0)}), "train")


def _kept(by: str | None) -> tuple[str, ...]:
    return () if by in (None, "year", "id", "time") else (by,)


def _written(texts: Sequence[object], folder: Path, where: str, text: str) -> tuple[Path, set[str]]:
    """The file that holds them, named by its content, and their columns."""
    if not texts:
        raise RequestError("there are no texts", where=where, found="an empty list")
    rows = []
    for number, value in enumerate(texts):
        row = {text: value} if isinstance(value, str) else value
        if not isinstance(row, Mapping) or not ({text} <= row.keys() or {"prompt", "response"} <= row.keys()):
            raise RequestError(
                "this is no text",
                where=f"{where}[{number}]",
                expected=f'a string, or a row such as {{"{text}": ...}} or {{"prompt": ..., "response": ...}}',
                found=f"{sorted(map(str, row))}" if isinstance(row, Mapping) else type(row).__name__,
            )
        rows.append(dict(row))
        if odd := rows[0].keys() ^ row.keys():
            found = f"{min(map(str, odd))} is not in all of them"
            raise RequestError("rows have different columns", where=f"{where}[{number}]", found=found)
    lines = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows).encode("utf-8", "surrogatepass")
    path = folder / f"texts-{hashlib.sha256(lines).hexdigest()[:16]}.jsonl"
    if not path.is_file():
        path.write_bytes(lines)
    return path, set(rows[0])
