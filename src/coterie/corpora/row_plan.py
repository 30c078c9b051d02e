"""How a row becomes a document, in the recipe's words: filters, templates, dates, and how many bad rows are borne."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from datetime import date
from typing import NamedTuple

import regex

from coterie.corpora import conversations
from coterie.corpora.corpus_settings import Documents
from coterie.corpora.template import RowError, Template, day, plain, string, wanted
from coterie.errors import RequestError

_SECONDS = 1.0
"""For one search of `time_pattern`."""
OWN = ("id", "prompt", "text", "time", "split", "content", "order")
"""Columns that every corpus has; the others are kept from the source, as text."""
USERS = "column "
"""Begins the name of a column of the source wherever a column of ours has its plain name: whatever a column is called, it is
kept. One that begins so itself gets it twice."""


def apart(name: str, ours: Container[str]) -> str:
    """What a column of the source is called among columns of ours. What begins with ``^`` would be a pattern to polars."""
    return USERS + name if name in ours or name.startswith((USERS, "^")) else name


def stored(name: str) -> str:
    """What a column of the source is called among a corpus's documents; ``row`` is ours while they are made."""
    return apart(name, (*OWN, "row"))


def find_column(name: str, columns: Container[str]) -> str:
    """Where a column of the source is among others: under its own name, unless that is one of ours."""
    return USERS + name if USERS + name in columns else name


def beside_own(corpus: Documents, columns: Iterable[str]) -> list[str]:
    """Columns without those that documents have as their id or time, each once."""
    return [c for c in dict.fromkeys(columns) if c not in OWN or c not in (corpus.id, corpus.time)]


class Document(NamedTuple):
    """What a row says."""

    id: str | None
    prompt: str | None
    text: str
    time: date | None
    group: str | None
    extra: tuple[str | None, ...]


class Plan:
    """The recipe's words for one corpus, parsed.

    Args:
        key: the corpus's place in the recipe (``corpora.code``), for messages.

    Raises:
        RequestError: a template that cannot be parsed, a further column with a document's own name.
    """

    def __init__(self, corpus: Documents, key: str) -> None:
        self.corpus, self.key = corpus, key
        patterns = {} if corpus.messages is not None else {"text": corpus.text or "text"}
        if corpus.prompt is not None and corpus.response is not None:
            patterns = {"prompt": corpus.prompt, "response": corpus.response}
        self.templates: dict[str, Template] = {}
        for name, pattern in patterns.items():
            try:
                self.templates[name] = Template(pattern)
            except ValueError as error:
                raise RequestError("a template that cannot be read", where=f"{key}.{name}", found=str(error)) from None
        self.extra = tuple(c for c in beside_own(corpus, corpus.columns) if c != "undated" or not corpus.undated)
        if corpus.is_chat and conversations.COLUMN in self.extra:
            what = f"{conversations.COLUMN!r} is the name of a column that conversations are kept in"
            raise RequestError(what, where=f"{key}.columns", do="take it out of the list")
        for column in self.extra:
            if column in OWN and any(t.bare and t.columns == (column,) for t in self.templates.values()):
                what = f"{column!r} is the name of a document's own column"
                raise RequestError(what, where=f"{key}.columns", do="take it out of the list")
        self.where = wanted(corpus.where)
        self.names = (*map(stored, self.extra), *(["undated"] if corpus.undated is not None else []))
        self.names += (conversations.COLUMN,) if corpus.is_chat else ()
        """Columns of the documents besides their own."""
        self.needed = {column: name for name, template in self.templates.items() for column in template.columns}
        """Every column that the recipe names, and the key that names it."""
        self.needed |= dict.fromkeys(self.extra, "columns") | dict.fromkeys(corpus.where, "where")
        singles = {"id": corpus.id, "time": corpus.time, "split.group": corpus.split.group, "messages": corpus.messages}
        for name, single in singles.items():
            if single is not None:
                self.needed[single] = name

    def document(self, row: Mapping[str, object]) -> Document | str:
        """The document of a row, or why the row is filtered.

        Raises:
            RowError: the row cannot be used.
        """
        corpus = self.corpus
        for column, values in self.where.items():
            if plain(row.get(column)) not in values:
                return f"where {column}"
        parts = {name: template.render(row) for name, template in self.templates.items()}
        turns: list[tuple[str, str]] = []
        if corpus.messages is not None:
            turns = conversations.conversation(row, corpus.messages)
            parts["text"] = "\n".join(content for _, content in turns)
        elif corpus.chat:
            turns = [("user", parts["prompt"]), ("assistant", parts["response"])]
        text = parts["text"] if "text" in parts else parts["response"]
        found = Document(
            id=string(row, corpus.id, numbers=True) if corpus.id is not None else None,
            prompt=parts.get("prompt"),
            text=text,
            time=self._time(row),
            group=plain(row.get(corpus.split.group)) if corpus.split.group is not None else None,
            extra=tuple(plain(row.get(column)) for column in self.extra),
        )
        if corpus.undated is not None:
            found = found._replace(extra=(*found.extra, None if found.time else corpus.undated))
        if turns:
            found = found._replace(extra=(*found.extra, conversations.as_json(turns)))
        return found if text.strip() else "empty"

    def _time(self, row: Mapping[str, object]) -> date | None:
        """The row's date; None only where the recipe says what becomes of documents without one."""
        column = self.corpus.time
        if column is None or (self.corpus.undated is not None and row.get(column) in (None, "")):
            return None
        if self.corpus.time_pattern is None:
            return day(row, column)
        value = row.get(column)
        match = self._search(self.corpus.time_pattern, value) if isinstance(value, str) else None
        if match is None or match[1] is None:
            found = repr(value)[:80] if column in row else "missing"
            raise RowError(f'field "{column}" is {found} (expected to match {self.corpus.time_pattern})')
        return day({column: match[1]}, column)

    def _search(self, pattern: str, value: str) -> regex.Match[str] | None:
        """As `re.search`, which has no limit of time: some patterns need longer than the universe for some values."""
        try:
            return regex.search(pattern, value, timeout=_SECONDS)
        except TimeoutError:
            raise RequestError(
                "time_pattern finds no end",
                where=f"{self.key}.time_pattern",
                expected=f"an answer within {_SECONDS:g} s",
                found=f"{pattern} on a value of {len(value):,} characters: {value[:40]!r}",
                do="write it without a repeat inside a repeat, such as (\\d{4})-(\\d\\d)",
            ) from None

    def check_columns(self, seen: set[str], read: int) -> None:
        """Every column that the recipe names must be in the data."""
        for column, name in self.needed.items():
            if column not in seen:
                raise RequestError(
                    f'0 of {read:,} rows have "{column}"',
                    where=f"{self.key}.{name}",
                    expected=f"one of the columns there are: {', '.join(sorted(seen)) or 'none'}",
                    found=column,
                    do=f"correct {self.key}.{name}",
                )

    def tolerate(self, read: int, bad: int, first: list[tuple[str, str]]) -> None:
        """Stop when more rows are bad than the recipe allows; ``first`` are place and reason of the first few."""
        allowed = self.corpus.bad_rows
        if bad <= min(allowed.most, allowed.share * read):
            return
        lines = [f"{place} {reason}" for place, reason in first]
        if bad > len(first):
            lines.append(f"and {bad - len(first):,} more")
        remedy = f"correct the rows, or bear more: {self.key}.bad_rows: {{share: {bad / read:.2g}, most: {bad}}}"
        for guess in ("latin-1", "cp1252"):
            if f"looks like {guess}" in first[0][1]:
                remedy = f"set {self.key}.encoding: {guess}, or correct the rows"
        raise RequestError(
            f"{bad:,} of {read:,} rows cannot be read",
            where=first[0][0],
            expected=f"at most {allowed.share * 100:g} % of the rows, and at most {allowed.most:,}",
            found="\n            ".join(lines),
            do=remedy,
        )
