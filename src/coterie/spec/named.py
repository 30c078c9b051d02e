"""Names that a recipe chooses from, where a table declares what each of them means."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection


def near(name: str, known: Collection[str]) -> list[str]:
    """All names that there are, the most similar first."""
    alike = difflib.get_close_matches(name, list(known), n=len(known) or 1, cutoff=0.5)
    return [*alike, *(n for n in known if n not in alike)]


def one_of(noun: str, known: Callable[[], Collection[str]]) -> Callable[[str], str]:
    """A validator that takes a known name.

    Args:
        noun: what the names are of, for messages, such as ``a file format``.
        known: asked anew each time, because a table may grow.
    """

    def check(name: str) -> str:
        if name not in known():
            raise ValueError(f"{noun}: {', '.join(near(name, known()))}")
        return name

    return check
