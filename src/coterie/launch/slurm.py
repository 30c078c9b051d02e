"""Jobs on a SLURM cluster, through submitit, which writes the batch script, starts the function and queues it again.

submitit hands a function over as a pickle: here it is one of ours with the words of a command, in a folder of the store, and
what comes back through it is never more than an exit code. Whether a job still runs is asked of `squeue`, for submitit asks
`sacct`, which clusters without accounting do not have. All machines must see the store, the output folder and the data.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.errors import RequestError
from coterie.launch import process
from coterie.launch.job_queue import THREADS, Job, command

if TYPE_CHECKING:
    import submitit
    from submitit.helpers import DelayedSubmission

OF_SUBMITIT = {
    *"account comment constraint cpus_per_gpu cpus_per_task exclude exclusive gpus_per_node gpus_per_task gres".split(),
    *"mail_type mail_user mem mem_per_cpu mem_per_gpu nodelist partition qos setup signal_delay_s time wckey".split(),
}
OF_SBATCH = set(
    "begin deadline gpu_bind gpus hint licenses nice prefer priority reservation switches threads_per_core tmp".split()
)
"""Names that submitit has, and those of `sbatch` that it passes on. A job is one process: nodes and tasks are left out."""

GOES_ON = {
    *"PENDING RUNNING SUSPENDED CONFIGURING COMPLETING REQUEUED REQUEUE_FED REQUEUE_HOLD RESIZING RESV_DEL_HOLD".split(),
    *"SIGNALING SPECIAL_EXIT STAGE_OUT STOPPED PREEMPTED".split(),
}
"""States after which a job may still end by itself."""

ASK = 5.0
"""Seconds between questions to SLURM."""


def parameters(given: Mapping[str, object]) -> dict[str, object]:
    """What submitit's executor is told.

    Args:
        given: names of submitit or `sbatch` (with `_` or `-`) and their values (``true`` of a flag); ``time`` in minutes
            or as SLURM writes it.

    Raises:
        RequestError: an unknown name; no time, for which submitit would take five minutes.
    """
    wanted = {name.replace("-", "_"): True if value == "true" else value for name, value in given.items()}
    unknown = sorted(wanted.keys() - OF_SUBMITIT - OF_SBATCH)
    if unknown:
        raise RequestError(
            "SLURM has no such parameter for a job",
            where=f"--slurm {unknown[0]}",
            expected=", ".join(sorted(OF_SUBMITIT | OF_SBATCH)),
            found=", ".join(unknown),
        )
    if "time" not in wanted:
        raise RequestError(
            "how long may a job take?",
            where="--slurm time",
            expected="minutes, H:M:S or D-H:M:S",
            do="for example --slurm time=4:00:00",
        )
    wanted["time"] = _minutes(wanted["time"])
    if isinstance(wanted.get("setup"), str):
        wanted["setup"] = [wanted["setup"]]
    if "cpus_per_task" in wanted:  # since 22.05 srun does not take it from the batch script
        wanted["srun_args"] = [f"--cpus-per-task={wanted['cpus_per_task']}"]
    further = {name.replace("_", "-"): wanted.pop(name) for name in sorted(wanted.keys() & OF_SBATCH)}
    return wanted | ({"additional_parameters": further} if further else {})


def _minutes(value: object) -> int:
    """``90``, ``MM:SS``, ``HH:MM:SS``, ``D-HH``, ``D-HH:MM``, ``D-HH:MM:SS``, rounded up."""
    days, dash, rest = str(value).rpartition("-")
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", str(value)):
        raise RequestError("no length of time", where="--slurm time", expected="minutes, H:M:S or D-H:M:S", found=str(value))
    numbers = [int(n) for n in rest.split(":")]
    units = (60, 1, 1 / 60) if dash or len(numbers) == 3 else (1, 1 / 60)
    return math.ceil(int(days or 0) * 24 * 60 + sum(n * unit for n, unit in zip(numbers, units, strict=False)))


class Command:
    """What runs on the cluster: a command, told when its time is nearly up, so that it goes on from there in the next."""

    def __init__(self, arguments: tuple[str, ...], log: Path) -> None:
        self.arguments, self.log = arguments, log

    def __call__(self) -> int:
        environment = dict(os.environ)
        for name in THREADS:
            environment.setdefault(name, os.environ.get("SLURM_CPUS_PER_TASK", "1"))
        self.process = process.start(command(self.arguments), self.log, environment)
        while self.process.poll() is None:  # not wait: a signal's handler could then not wait for it either
            time.sleep(0.2)
        return self.process.returncode

    def checkpoint(self) -> DelayedSubmission:
        """Called by submitit ``signal_delay_s`` before the end; what it returns is queued again."""
        from submitit.helpers import DelayedSubmission

        process.end([self.process], signal.SIGINT, patience=80)
        return DelayedSubmission(Command(self.arguments, self.log))


class Slurm:
    """Jobs of a cluster."""

    def __init__(self, given: Mapping[str, object], at_once: int | None = None) -> None:
        self.parameters, self.at_once = parameters(given), at_once
        if importlib.util.find_spec("submitit") is None:
            raise RequestError(
                "jobs on SLURM need submitit",
                where="--slurm",
                found="it is not installed",
                do="pip install 'coterie[slurm]'",
            )
        if shutil.which("sbatch") is None:
            raise RequestError(
                "there is no SLURM here",
                where="--slurm",
                expected="sbatch on the PATH",
                found="no sbatch",
                do="call it on a login node of the cluster, or use --jobs N on this machine",
            )
        self.arrives = 60.0  # NFS remembers for so long that something was not there
        self._jobs: dict[str, submitit.Job[int]] = {}
        self._asked = -math.inf
        self._states: dict[str, str] = {}
        self._gone: dict[str, float] = {}

    def start(self, job: Job, log: Path) -> None:
        import submitit

        executor = submitit.SlurmExecutor(log.parent / "slurm", max_num_timeout=1000)
        executor.update_parameters(job_name=f"coterie-{job.name}", **self.parameters)
        try:
            self._jobs[job.name] = made = executor.submit(Command(job.arguments, log))
        except submitit.core.utils.FailedJobError as error:
            raise RequestError(
                "SLURM does not take the job",
                where="--slurm",
                found=str(error).strip().splitlines()[-1],
                kept="what was finished",
                do="correct what it names",
            ) from None
        self._asked = time.monotonic()  # else an older answer, without this job, would say that it is gone
        self._states[made.job_id] = "PENDING"

    def ended(self, name: str) -> str | None:
        running = self._jobs[name]
        if running.paths.result_pickle.exists():
            failure = running.exception()
            code = running.result() if failure is None else None
            return "" if code == 0 else f"exit code {code}" if failure is None else str(failure)
        self._ask()
        state = self._states.get(running.job_id, "not in the queue")
        if state in GOES_ON:
            self._gone.pop(running.job_id, None)
            return None
        since = self._gone.setdefault(running.job_id, time.monotonic())
        if time.monotonic() - since < self.arrives:
            return None
        written = running.paths.stderr
        return f"SLURM job {running.job_id}: {state}" + (f"; see {written}" if written.exists() else "")

    def _ask(self) -> None:
        if time.monotonic() - self._asked < ASK:
            return
        self._asked = time.monotonic()
        question = ["squeue", "--me", "--noheader", "--states=all", "--format=%A %T"]
        done = subprocess.run(question, capture_output=True, text=True, check=False)
        if done.returncode == 0:  # else it is busy: asked again later
            self._states = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if " " in line.strip())

    def end(self, names: Sequence[str]) -> None:
        for name in names:
            with suppress(subprocess.CalledProcessError):
                self._jobs[name].cancel()
