"""Things that a recipe chooses by name, each declared once: the table of them, and the error that lists them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from typing import Protocol, TypeVar

from pydantic_core import PydanticCustomError


class Named(Protocol):
    """What can be chosen by name."""

    @property
    def tag(self) -> str: ...


N = TypeVar("N", bound=Named)


class Table(dict[str, N]):
    """Declarations by tag, in the order in which they were added.

    Args:
        noun: what they are, for messages, such as ``file format``.
        also: names with a meaning of their own that may stand for one of them.
    """

    def __init__(self, noun: str, *also: str) -> None:
        super().__init__()
        self.noun, self.also = noun, also

    def add(self, made: N) -> N:
        """Make one more known; ValueError if its tag is taken."""
        if made.tag in (*self.also, *self):
            raise ValueError(f"{made.tag!r} is the name of a {self.noun} already")
        self[made.tag] = made
        return made

    def check(self, name: str) -> str:
        """A validator for settings; its PydanticCustomError lists the names that there are, the most similar first."""
        known = (*self.also, *self)
        if name not in known:
            names = near(name, known)
            raise PydanticCustomError(
                "unknown_kind",
                "{what}; there are: {names}",
                {
                    "what": f"no {self.noun} is called {name!r}",
                    "key": "",
                    "found": name,
                    "known": names,
                    "names": ", ".join(names),
                },
            )
        return name


def near(name: str, known: Collection[str]) -> list[str]:
    """All names that there are, the most similar first."""
    alike = difflib.get_close_matches(name, list(known), n=len(known) or 1, cutoff=0.5)
    return [*alike, *(n for n in known if n not in alike)]


def markdown_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table of the docs."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
