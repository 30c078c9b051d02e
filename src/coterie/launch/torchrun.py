"""One piece of work on several processes of this machine, started by torchrun and owned by this process.

The work goes to the ranks as a pickle in a folder that only this user can read; what rank 0 returns, and the error of the
rank that failed first, come back the same way, so that a person reads one message and not one traceback a rank. Ranks end
when this process does, however it ends: work whose owner is gone must not go on beside its successor.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from coterie.errors import CoterieError, WorkError
from coterie.launch import process
from coterie.progress import say
from coterie.spec.json_types import Figures

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
        agent = process.start(command, folder / "log.txt", environment)
        try:
            progress = process.Lines(folder / "progress.txt")
            while agent.returncode is None:
                with suppress(subprocess.TimeoutExpired):
                    agent.wait(timeout=0.2)
                for line in progress.new():
                    say(line)
        finally:
            process.end([agent], signal.SIGTERM)
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
