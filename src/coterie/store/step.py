"""One step of a plan: something that is asked for, whether it is there, and what it needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One request, with its address."""

    key: str
    """Of the action. What depends on something missing is addressed by what was asked for, not by what will come out."""
    kind: str
    label: str
    """What it is, for people."""
    cached: bool
    tokens: int | None = None
    """Tokens that it will process."""
    needs: tuple[str, ...] = ()
    """Keys of the steps whose results it reads."""
    digest: str | None = None
    """Of the result, where it is there."""
