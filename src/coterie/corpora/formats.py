"""The file formats that a corpus is read from: one declaration each.

What `format:` takes, which file is read how, what errors list and what the docs show come from here. A format of your own is
one more `register(Format(...))`, in a file that is imported before the recipe is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.corpora import lines
from coterie.spec.kind import Table, markdown_table

if TYPE_CHECKING:
    from coterie.corpora.source_file import Reader

AUTO = "auto"
"""Stands for the format that the file's ending tells."""


@dataclass(frozen=True)
class Format:
    """One file format."""

    tag: str
    """Its name in a recipe."""
    sentence: str
    """What such a file holds."""
    reader: Callable[[], Reader]
    """Imports the reader, once there is a file to read."""
    endings: tuple[str, ...] = ()
    """Of file names, in lower case; `.gz` and `.zst` may follow."""
    one_document: bool = False
    """Whether a file is one document, known by the file's name."""
    apart: bool = True
    """Whether the files of one corpus may be read and profiled apart."""
    marks: tuple[str, ...] = ()
    """A folder with one of these files is of this format as a whole."""


def _parquet() -> Reader:
    from coterie.corpora.columnar import parquet

    return parquet


def _arrow() -> Reader:
    from coterie.corpora.columnar import arrow

    return arrow


FORMATS: Table[Format] = Table("file format", AUTO)
"""By tag."""


def register(made: Format) -> Format:
    """Make a format known.

    Raises:
        ValueError: its tag or one of its endings is taken.
    """
    if taken := set(made.endings) & endings().keys():
        raise ValueError(f"{', '.join(sorted(taken))}: the ending of a file format already")
    return FORMATS.add(made)


def endings() -> dict[str, str]:
    """The format of each ending."""
    return {ending: tag for tag, known in FORMATS.items() for ending in known.endings}


def of_file(path: Path) -> str | None:
    """The format that the file's ending tells."""
    suffixes = [e.lower() for e in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in (".gz", ".zst"):
        suffixes.pop()
    return endings().get(suffixes[-1]) if suffixes else None


def docs_table() -> str:
    """The formats, for the docs."""
    rows = [
        (f"`{made.tag}`", ", ".join(f"`{ending}`" for ending in made.endings) or "a folder", made.sentence)
        for made in FORMATS.values()
    ]
    return markdown_table(("`format`", "endings", "what it is"), rows)


JSONL = register(Format("jsonl", "One JSON object on each line.", lambda: lines.jsonl, (".jsonl", ".ndjson", ".json")))
_CSV = "A header, then a row on each line; quoted fields may hold line breaks."
CSV = register(Format("csv", _CSV, lambda: lines.csv_rows, (".csv",)))
PARQUET = register(Format("parquet", "A Parquet file; only the columns that are needed are read.", _parquet, (".parquet",)))
ARROW = register(Format("arrow", "An Arrow file or stream, as `datasets` keeps them.", _arrow, (".arrow",), apart=False))
TEXT = register(
    Format(
        "text",
        "A file is one document, with the columns `text`, `path` and `folder`; its name in the folder is its id.",
        lambda: lines.text,
        (".txt", ".text", ".md", ".markdown", ".rst", ".py", ".tex", ".org", ".adoc"),
        one_document=True,
        apart=False,
    )
)
SAVED = register(
    Format(
        "dataset",
        "A dataset that `save_to_disk` of `datasets` wrote; each split is a folder beside `dataset_dict.json`.",
        _arrow,
        apart=False,
        marks=("dataset_dict.json", "state.json"),
    )
)
