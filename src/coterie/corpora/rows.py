"""Read one file row by row, whatever its format, and notice when the file as a whole is no good."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator

from coterie.corpora.formats import FORMATS
from coterie.corpora.source_file import Item, OpenFile, Source, unchanged
from coterie.errors import RequestError


def rows(
    source: Source, encoding: str, columns: frozenset[str], seen: set[str], key: str
) -> Iterator[tuple[Item, Callable[[], int]]]:
    """Read one file.

    Args:
        encoding: of files of text.
        columns: what is needed; columnar files read nothing else.
        seen: receives the names of all columns there are.
        key: the corpus's place in the recipe, for messages (``corpora.code``).

    Yields:
        each row, and a function that tells how many bytes of the file have been read.

    Raises:
        RequestError: the file as a whole cannot be read: empty, truncated, changed meanwhile, not of its format.
    """
    read = 0
    with unchanged(source), source.path.open("rb") as file:
        try:
            reader = FORMATS[source.format].reader()
            for item in reader(OpenFile(source, file, encoding, columns, seen, key)):
                read += 1
                yield item, file.tell
        except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeError) as error:
            undecodable = isinstance(error, UnicodeError)
            raise RequestError(
                "the file is not in the encoding that was declared" if undecodable else "a damaged or incomplete file",
                where=str(source.path),
                expected=encoding if undecodable else None,
                found=f"{error} after {read:,} rows",
                kept="nothing of it was used",
                do=f"correct {key}.encoding" if undecodable else "fetch the file again",
            ) from None
    if read == 0:
        raise RequestError(
            "0 rows",
            where=str(source.path),
            found="an empty file" if source.size == 0 else "no row in the file",
            do=f"take it out of {key}.path",
        )
