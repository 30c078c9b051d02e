"""One file of a corpus: where it is, how it is handed to a reader, and the rows that a reader gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from coterie.corpora.byte_streams import opened
from coterie.errors import RequestError


class Row(NamedTuple):
    """One row that could be read."""

    line: int
    """Physical line where it starts (JSONL, CSV, text), or row number; from 1."""
    offset: int | None
    """Byte where it starts, after decompression; none for columnar files."""
    values: Mapping[str, object]
    raw: bytes | None
    """Its bytes, for the quarantine; none for columnar files."""


class Bad(NamedTuple):
    """One row that could not be read."""

    line: int
    offset: int | None
    reason: str
    """Without the row's text."""
    raw: bytes | None


Item = Row | Bad


@dataclass(frozen=True)
class Source:
    """One file to read."""

    path: Path
    name: str
    """Inside the folder that was named, or the file's name; the id of a text file."""
    format: str
    """Tag of the file's format."""
    size: int
    modified: int
    """Nanoseconds; tells whether the file changed between hashing and reading."""

    @classmethod
    def of(cls, path: Path, name: str, format: str) -> Source:
        status = path.stat()
        return cls(path, name, format, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class OpenFile:
    """A file and what a reader must know of it."""

    source: Source
    file: BinaryIO
    encoding: str
    """Of its text, if it is a file of text."""
    columns: frozenset[str]
    """What is needed: a columnar file need not read anything else."""
    seen: set[str]
    """A reader adds the names of all columns there are."""
    key: str
    """The corpus's place in the recipe, for messages (``corpora.code``)."""

    def text(self) -> tuple[BinaryIO, str]:
        """The decompressed bytes, and their encoding."""
        return opened(self.file, self.encoding, self.key)


Reader = Callable[[OpenFile], Iterator[Item]]
"""Gives the rows of a file, each with its line, or with the reason why it is none."""


@contextmanager
def unchanged(source: Source) -> Iterator[None]:
    """The bytes that are read must be those that were hashed.

    Raises:
        RequestError: the file cannot be read, or changed meanwhile.
    """
    try:
        yield
        status = source.path.stat()
    except OSError as error:
        raise RequestError("the file cannot be read", where=str(source.path), found=error.strerror or str(error)) from None
    if (status.st_size, status.st_mtime_ns) != (source.size, source.modified):
        raise RequestError("the file changed while it was read", where=str(source.path), do="run the same command again")
