"""Many jobs, each a `coterie` command, on this machine or on a cluster: in what order, how many at once, what went wrong.

The process that asks for the jobs starts each when what it rests on is done, so the places where they run need to know
nothing of each other. The price: it has to stay until the last job has ended. That loses nothing, because every job
publishes into the store what it has finished, and the same command again starts only what is still missing.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Protocol

from coterie.errors import RequestError, WorkError
from coterie.launch import process
from coterie.launch.process import Lines
from coterie.progress import say

POLL = 0.2
"""Seconds between looks at running jobs."""


@dataclass(frozen=True)
class Job:
    """One command."""

    name: str
    """For people: begins each of its lines, and names its log."""
    arguments: tuple[str, ...]
    """``coterie ARGUMENTS...``."""
    after: frozenset[str] = frozenset()
    """Names of the jobs that must be done before."""


class Place(Protocol):
    """Where jobs run."""

    @property
    def at_once(self) -> int | None:
        """So many at the same time; None: as many as there are."""

    @property
    def arrives(self) -> float:
        """Seconds after which what a job wrote is certainly seen here."""

    def start(self, job: Job, log: Path) -> None:
        """Start a job whose lines go to ``log``."""

    def ended(self, name: str) -> str | None:
        """None while the job of that name runs; then "" if all went well, else how it ended."""

    def end(self, names: Sequence[str]) -> None:
        """End jobs before they are done."""


def run_jobs(jobs: Sequence[Job], place: Place, folder: Path, changed: Callable[[], object] = lambda: None) -> None:
    """Run all jobs; where one fails, those that do not need it go on.

    Args:
        folder: exists, for ``NAME.log`` of each job; on a cluster all machines see it.
        changed: called whenever a job is about to start or has ended.

    Raises:
        WorkError: jobs failed; it names them, the last error and the log of each.
    """
    by_name = {job.name: job for job in jobs}
    assert len(by_name) == len(jobs), "two jobs of one name"
    waiting = {name: by_name[name] for name in TopologicalSorter({job.name: job.after for job in jobs}).static_order()}
    running: dict[str, Lines] = {}
    done: set[str] = set()
    failed: dict[str, str] = {}
    try:
        while waiting or running:
            for job in list(waiting.values()):
                if job.after & failed.keys():
                    failed[job.name] = f"not started: it needs {', '.join(sorted(job.after & failed.keys()))}"
                    del waiting[job.name]
                elif job.after <= done and len(running) < (place.at_once or len(jobs)):
                    changed()
                    log = folder / f"{job.name}.log"
                    place.start(job, log)
                    running[job.name] = Lines(log)
                    del waiting[job.name]
            time.sleep(POLL if running else 0)
            for name, lines in list(running.items()):
                ended = place.ended(name)
                for line in lines.new():
                    say(f"{name} | {line}")
                if ended is None:
                    continue
                del running[name]
                changed()
                if ended:
                    failed[name] = f"{ended}; {_last_error(lines.path)} ({lines.path})"
                    say(f"{name} | failed; what does not need it goes on" if waiting or running else f"{name} | failed")
                else:
                    done.add(name)
    finally:
        place.end(list(running))
    if failed:
        raise WorkError(
            f"{len(failed)} of {len(jobs)} jobs {'was' if len(failed) == 1 else 'were'} not done: {', '.join(failed)}",
            where=str(folder),
            expected="every job to end well",
            found="".join(f"\n    {name}: {why}" for name, why in failed.items()),
            kept=f"what was finished ({len(done)} jobs), and the newest checkpoint of what was not",
            do="correct what the logs name; the same command goes on",
        )


def _last_error(log: Path) -> str:
    """The last error in a log, on one line; without one, its last line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    begins = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    return "; ".join(" ".join(line.split()) for line in (lines[begins[-1] :] if begins else lines[-1:]))


THREADS = ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")
"""How the libraries are told how many threads to use: torch and numpy, polars, tokenizers."""


def command(arguments: Sequence[str]) -> list[str]:
    """``coterie ARGUMENTS...`` as a process that ends with this one."""
    return [sys.executable, "-m", "coterie.launch.run_job", str(os.getpid()), *arguments]


class Local:
    """So many jobs at once, each on its share of the cores and of the GPUs."""

    def __init__(self, at_once: int) -> None:
        if at_once < 1:
            raise RequestError("no jobs at once", where="--jobs", expected="1 or more", found=str(at_once))
        self.at_once, self.arrives = at_once, 0.0
        self._seats: list[str | None] = [None] * at_once
        self.processes: dict[str, process.Process] = {}
        """By the name of the job."""

    def start(self, job: Job, log: Path) -> None:
        seat = next(i for i, name in enumerate(self._seats) if name is None or self.processes[name].returncode is not None)
        gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))  # without torch
        environment = {**os.environ, **share(seat, self.at_once, os.environ.get("CUDA_VISIBLE_DEVICES"), gpus)}
        for name in THREADS:
            environment.setdefault(name, str(max((os.cpu_count() or 1) // self.at_once, 1)))
        self._seats[seat] = job.name
        self.processes[job.name] = process.start(command(job.arguments), log, environment)

    def ended(self, name: str) -> str | None:
        code = self.processes[name].poll()
        if code is None or code == 0:
            return None if code is None else ""
        return f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def end(self, names: Sequence[str]) -> None:
        if names:
            say(f"  ending {len(names)} jobs, training with a checkpoint; once more ends them at once")
        process.end([self.processes[name] for name in names], signal.SIGINT, patience=60)


def share(seat: int, seats: int, visible: str | None, gpus: int) -> dict[str, str]:
    """The GPUs of one of so many seats, as an environment: every `seats`-th; one that others use too if there are fewer."""
    every = [str(i) for i in range(gpus)] if visible is None else [gpu for gpu in visible.split(",") if gpu]
    if len(every) < 2 or seats < 2:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(every[seat::seats] or [every[seat % len(every)]])}
