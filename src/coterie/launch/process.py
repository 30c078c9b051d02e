"""Processes of this machine that this process owns: started apart, their lines in a file, ended together; or the ranks of
one piece of work, started by torchrun.

The work goes to the ranks as a pickle in a folder that only this user can read; what rank 0 returns, and the error of the
rank that failed first, come back the same way, so that a person reads one message and not one traceback a rank. All of it
ends when this process does, however it ends: work whose owner is gone must not go on beside its successor.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from coterie.errors import CoterieError, WorkError
from coterie.progress import say
from coterie.spec.json_types import Figures


def end_with(owner: int) -> None:
    """End this process, however busy it is, within a second of the end of process ``owner``."""
    threading.Thread(target=_watch, args=(owner,), daemon=True).start()


def _watch(owner: int) -> None:
    while True:
        try:
            os.kill(owner, 0)
        except OSError:
            os._exit(1)
        time.sleep(1)


Process = subprocess.Popen[bytes]


def start(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Process:
    """Start it in a session of its own: Ctrl-C reaches this process alone, which then ends what it started."""
    with log.open("ab") as lines:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=lines, stderr=lines, env={**environment}, start_new_session=True
        )


def end(processes: Sequence[Process], ask: signal.Signals, patience: float = 10) -> None:
    """Ask processes and their children to end; whatever is left after so many seconds, or at a second Ctrl-C, is killed."""
    _tell(processes, ask)
    until = time.monotonic() + patience
    try:
        for process in processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(until - time.monotonic(), 0))
    finally:
        _tell(processes, signal.SIGKILL)
        for process in processes:
            process.wait()


def _tell(processes: Sequence[Process], number: signal.Signals) -> None:
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, number)


class Lines:
    """The lines that are written to a file, as they come."""

    def __init__(self, path: Path) -> None:
        self.path, self.read = path, 0

    def new(self) -> list[str]:
        """Whole lines that were not given out before; none while there is no file."""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self.read)
            whole = file.read().rpartition(b"\n")
            self.read += len(whole[0]) + len(whole[1])
            return whole[0].decode(errors="replace").splitlines()
        return []


TORCHRUN = ("-m", "torch.distributed.run", "--standalone")


def on_ranks(work: Callable[[], Figures], *, processes: int, label: str) -> Figures:
    """Do some work, a function of a module with its arguments as `functools.partial` holds them, on so many ranks of this
    machine; gives what rank 0 returned.

    Raises:
        CoterieError: as raised on a rank.
        WorkError: a rank ended otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="coterie-ranks-") as temp:
        folder = Path(temp)
        (folder / "work").write_bytes(pickle.dumps(work))
        ranks = ["-m", "coterie.launch.run_rank", str(folder), str(os.getpid())]
        command = [sys.executable, *TORCHRUN, f"--nproc-per-node={processes}", *ranks]
        environment = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // processes, 1)), **os.environ}
        agent = start(command, folder / "log.txt", environment)
        try:
            progress = Lines(folder / "progress.txt")
            while agent.returncode is None:
                with suppress(subprocess.TimeoutExpired):
                    agent.wait(timeout=0.2)
                for line in progress.new():
                    say(line)
        finally:
            end([agent], signal.SIGTERM)
        if agent.returncode == 0:
            return pickle.loads((folder / "result").read_bytes())
        raise _error(folder, label)


def _error(folder: Path, label: str) -> CoterieError:
    if failed := sorted(folder.glob("error-*"), key=lambda path: path.stat().st_mtime_ns):
        return pickle.loads(failed[0].read_bytes())
    lines = [line for line in (folder / "log.txt").read_text(errors="replace").splitlines() if line.strip()]
    return WorkError(
        f"{label}: a rank ended before its work was done",
        found=next((line.strip() for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no message"),
        kept="the newest checkpoint",
        do="run the same command again: it goes on from there",
    )
