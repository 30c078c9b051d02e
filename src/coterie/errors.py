"""Errors for people: what went wrong, where, what was expected and found, what was kept, what to do."""

from __future__ import annotations

import re

_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal acts on: controls, changes of the direction of writing; and what it cannot show."""


def visible(text: str) -> str:
    """Text that came from elsewhere, as a terminal may show it: what would steer the terminal is spelled out."""
    return _STEERS.sub(lambda match: ascii(match[0])[1:-1], text)


class CoterieError(Exception):
    """Base of every error that is meant to be read by a person.

    Args:
        what: one sentence, e.g. ``unknown key``.
        where: ``file:line`` or the key, e.g. ``recipe.yaml:12 (experts.0.tain)``.
        expected, found: what should have been there and what was.
        kept: what is safe on disk.
        do: the remedy.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        found: str | None = None,
        kept: str | None = None,
        do: str | None = None,
    ) -> None:
        self.what, self.where, self.expected, self.found, self.kept, self.do = what, where, expected, found, kept, do
        super().__init__(what)

    def __str__(self) -> str:
        lines = [self.what]
        for label in ("where", "expected", "found", "kept", "do"):
            value = getattr(self, label)
            if value:
                lines.append(f"  {label + ':':<10}{value}")
        return visible("\n".join(lines))


class RequestError(CoterieError, ValueError):
    """The request is wrong; nothing was started. Exit code 2."""

    exit_code = 2


class WorkError(CoterieError, RuntimeError):
    """It failed while working; what was finished is kept and the same command continues. Exit code 1."""

    exit_code = 1
