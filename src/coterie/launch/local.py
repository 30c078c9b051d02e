"""Jobs on this machine: processes of this interpreter that share its cores and GPUs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from coterie.errors import RequestError
from coterie.launch import process
from coterie.launch.job_queue import Job
from coterie.progress import say

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
        environment = {**os.environ, **share(seat, self.at_once, os.environ.get("CUDA_VISIBLE_DEVICES"), _gpus())}
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


def _gpus() -> int:
    """GPUs of this machine, without torch."""
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
