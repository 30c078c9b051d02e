"""One way to tell a person how far the work is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from coterie.errors import visible

if TYPE_CHECKING:
    from rich.progress import Progress

QUIET = False
"""Set by ``--quiet`` and by tests; errors are still raised."""


def say(line: str = "") -> None:
    """Print one line for a person, to standard error, so that standard output stays for results."""
    if not QUIET:
        print(visible(line), file=sys.stderr, flush=True)


class Bar:
    """Progress of one long piece of work, counted in tokens, documents or bytes."""

    def __init__(self, label: str, total: int | None, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.started, self._last_line = 0, time.monotonic(), time.monotonic()
        self._rich: Progress | None = None
        if not QUIET and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._rich = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._rich.add_task(label, total=total, note="")
            self._rich.start()

    def to(self, done: int, note: str = "") -> None:
        """Move to ``done`` units; plain lines appear at most every ten seconds."""
        self.done = done
        rate = done / max(time.monotonic() - self.started, 1e-9)
        text = f"{rate:,.0f} {self.unit}/s {note}".strip()
        if self._rich is not None:
            self._rich.update(self._task, completed=done, note=text)
        elif time.monotonic() - self._last_line > 10:
            self._last_line = time.monotonic()
            share = f" of {self.total:,}" if self.total else ""
            left = f", {max(self.total - done, 0) / rate:,.0f} s left" if self.total and rate > 0 else ""
            say(f"  {self.label}: {done:,}{share} {self.unit}, {text}{left}")

    def close(self) -> None:
        if self._rich is not None:
            self._rich.stop()


@contextmanager
def bar(label: str, total: int | None = None, unit: str = "tokens") -> Iterator[Bar]:
    """``with bar("expert code", 2_000_000) as b: b.to(5000)``."""
    it = Bar(label, total, unit)
    try:
        yield it
    finally:
        it.close()
