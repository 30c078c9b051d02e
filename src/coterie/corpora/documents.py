"""The corpus verb: files of rows become documents, each in one split, and every row is accounted for."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from coterie.corpora.conversations import layout
from coterie.corpora.corpus_settings import Documents
from coterie.corpora.formats import FORMATS
from coterie.corpora.reading import Reading
from coterie.corpora.row_plan import Plan
from coterie.corpora.source_file import Item, OpenFile, Source, unchanged
from coterie.corpora.sources import resolve
from coterie.errors import RequestError
from coterie.progress import bar, say
from coterie.spec.digest import digest
from coterie.store import Action, Artifact, Store

AnyCorpus = TypeVar("AnyCorpus", bound=Documents)
_NOT_CONTENT = {"path", "hub", "config", "revision", "split_name", "format", "bad_rows", "limit", "select"}
"""Where the bytes are found, which the digest of the bytes replaces, and what does not change the result."""


def read_corpus(store: Store, corpus: Documents, *, label: str) -> Artifact:
    """Read a corpus into ``documents.parquet``, ``quarantine.jsonl`` and ``facts.json``.

    Args:
        label: the corpus's name in the recipe; messages say ``corpora.<label>.<key>``.

    Returns:
        a ``corpora`` artifact. Neither paths nor the name are part of its identity; the bytes of the files are. A limit in
        tokens is applied later, by ``blocks``.

    Raises:
        RequestError: a file is missing, empty, truncated or in another format or encoding; a column does not exist; no row
            is usable; more rows are bad than `bad_rows` allows.
    """
    plan = Plan(corpus, f"corpora.{label}")
    if corpus.stream is not None:
        from coterie.corpora.hub import streamed

        rows_of = streamed(store, corpus, plan, label=label)
        corpus = corpus.model_copy(update={"hub": None, "stream": None, "path": str(rows_of.file("rows.parquet"))})
        if rows_of.planned:
            spec = {**_content(corpus), "limit": None}
            return store.make(Action("corpora", spec, {"source": rows_of.digest}), lambda _: None, label=f"corpus {label}")
    try:
        sources = resolve(corpus, label, download=not store.dry)
        read = digest([_identity(store, source) for source in sources])
    except RequestError:
        if not store.dry or corpus.hub is None:
            raise
        sources, read = [], digest(["not on this machine", corpus.hub, corpus.config, corpus.revision, corpus.split_name])
    limit = corpus.limit.model_dump(mode="json") if corpus.limit and corpus.limit.tokens is None else None
    spec = {**_content(corpus), "limit": limit}
    spec = {key: value for key, value in spec.items() if value is not None}

    def build(folder: Path) -> dict[str, int]:
        size = sum(source.size for source in sources)
        reading, before = Reading(plan, folder, size), 0
        with bar(f"read {label}", size, "bytes") as progress:
            for number, source in enumerate(sources, 1):
                for item, position in rows(source, corpus.encoding, frozenset(plan.needed), reading.seen, plan.key):
                    reading.take(source, number, item)
                    if reading.read % 256 == 0:
                        progress.to(before + position())
                before += source.size
        reading.finish()
        return {"bytes": size}

    made = store.make(Action("corpora", spec, {"source": read}), build, label=f"corpus {label}")
    if not made.planned:  # it may have been made when the recipe bore more bad rows
        tolerate(plan, [made])
    return made


def _content(corpus: Documents) -> dict[str, object]:
    """The settings that decide what is read. Those of chat are left out where they are not used, as they came later."""
    unused = {name for name in ("messages", "chat") if not getattr(corpus, name)}
    return corpus.model_dump(mode="json", exclude=_NOT_CONTENT | unused)


def recognised(corpus: AnyCorpus, label: str, *, download: bool = True) -> AnyCorpus:
    """The corpus, with what its columns tell where its settings name no text: see `coterie.corpora.conversations.LAYOUTS`.

    Raises:
        RequestError: a file is missing or cannot be read.
    """
    if corpus.text or corpus.prompt or corpus.messages or corpus.stream:
        return corpus
    try:
        source = next(iter(resolve(corpus, label, download=download)))
    except RequestError:
        if corpus.hub is None or download:
            raise
        return corpus
    seen: set[str] = set()
    next(rows(source, corpus.encoding, frozenset(), seen, f"corpora.{label}"), None)
    if FORMATS[source.format].one_document or (found := layout(seen)) is None:
        return corpus
    say(f"  corpus {label}: {', '.join(f'{key}: {value!r}' for key, value in found.items())}, as its columns tell")
    return corpus.model_copy(update=found)


def tolerate(plan: Plan, parts: Sequence[Artifact]) -> None:
    """Bad rows are borne by the corpus, not by each of its parts.

    Raises:
        RequestError: more are bad than the recipe allows.
    """
    read, bad = (sum(part.facts[key] for part in parts) for key in ("read", "quarantined"))
    first: list[tuple[str, str]] = []
    for part in parts:
        with part.file("quarantine.jsonl").open(encoding="utf-8") as file:
            found = map(json.loads, islice(file, 3 - len(first)))
            first += [(f"{row['file']}:{row['line']}", row["reason"]) for row in found]
    plan.tolerate(read, bad, first)


def _identity(store: Store, source: Source) -> list[str]:
    """What a file contributes to the corpus's identity; its name, where that is the document's id."""
    name = source.name if FORMATS[source.format].one_document else ""
    return [source.format, store.digest_file(source.path), name]


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
        found = "an empty file" if source.size == 0 else "no row in the file"
        raise RequestError("0 rows", where=str(source.path), found=found, do=f"take it out of {key}.path")
