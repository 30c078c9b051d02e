"""What a kind of fault declares."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Trial:
    """One fault that was tried."""

    kind: str
    """What the table counts it under: `SIGKILL of a run at layers`, `one bit of weights through load`."""
    what: str
    """Where exactly, so that a person can look: a file and a bit, a moment in seconds, the number of a system call."""
    landed: bool = True
    """False where it came too late or could do nothing: not counted."""
    violations: tuple[str, ...] = ()
    """What did not hold afterwards."""


class Draw(random.Random):
    """The generator of one trial."""

    number = 0
    """The trial's: a row that is a list of cases takes them in turn."""


@dataclass(frozen=True)
class Row:
    name: str
    title: str
    """For the table: what is done to what."""
    invariant: str
    """For the table: what must hold afterwards, in one line."""
    counts: tuple[int, int, int]
    """Trials that land: in the default suite, in `make faults`, in `make faults-long`."""
    trial: Callable[[Path, Path, Draw], Trial]
    """(prepared folder, empty folder of its own, generator) -> what happened. Everything is drawn from the generator."""
    prepare: Callable[[Path], None] = lambda folder: None
    """Fill a folder once a worker: what trials copy from and must not change."""
