"""Work on many processes: torchrun for one expert, jobs for many, here or through SLURM. No torch in this process."""

from __future__ import annotations

from collections.abc import Mapping

from coterie.launch.job_queue import Job, Local, Place, run_jobs
from coterie.launch.process import on_ranks

__all__ = ["Job", "Place", "on_ranks", "place", "run_jobs"]


def place(jobs: int | None, slurm: Mapping[str, object] | None) -> Place | None:
    """Where jobs run: SLURM if it is told anything, else this machine, None if there are to be none; RequestError if that
    cannot be had."""
    if slurm is not None:
        from coterie.launch.slurm import Slurm

        return Slurm(slurm, jobs)
    return None if jobs is None else Local(jobs)
