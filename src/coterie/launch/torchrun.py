"""One piece of work on several processes of this machine, started by torchrun and owned by this process.

The request goes to the ranks as a JSON file; what rank 0 returns, and the error of the rank that failed first, come back the
same way, so that a person reads one message and not one traceback a rank. Ranks end when this process does, however it
ends: work whose owner is gone must not go on beside its successor.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from coterie import errors
from coterie.errors import WorkError
from coterie.launch import process
from coterie.progress import say
from coterie.spec.json_types import Figures

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")


def on_ranks(call: str, payload: Mapping[str, object], *, processes: int, label: str) -> Figures:
    """Call a function on every rank.

    Args:
        call: ``module:function``; it is given ``payload``.
        payload: JSON values.
        processes: ranks on this machine.
        label: what it is, for people.

    Returns:
        what rank 0 returned (a JSON value).

    Raises:
        CoterieError: as raised on a rank.
        WorkError: a rank ended otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="coterie-ranks-") as temp:
        folder = Path(temp)
        (folder / "request.json").write_text(json.dumps({"call": call, "payload": payload, "owner": os.getpid()}))
        command = [*TORCHRUN, f"--nproc-per-node={processes}", "-m", "coterie.launch.run_rank", str(folder)]
        environment = {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // processes, 1)), **os.environ}
        agent = process.start(command, folder / "log.txt", environment)
        try:
            _follow(agent, process.Lines(folder / "progress.txt"))
        finally:
            process.end([agent], signal.SIGTERM)
        if agent.returncode == 0:
            return json.loads((folder / "result.json").read_text())
        raise _error(folder, label)


def _follow(agent: process.Process, progress: process.Lines) -> None:
    """Pass on rank 0's lines until all ranks have ended."""
    while agent.returncode is None:
        with suppress(subprocess.TimeoutExpired):
            agent.wait(timeout=0.2)
        for line in progress.new():
            say(line)


def _error(folder: Path, label: str) -> errors.CoterieError:
    failed = sorted(folder.glob("error-*.json"), key=lambda path: path.stat().st_mtime_ns)
    if failed:
        fields = json.loads(failed[0].read_text())
        kind = getattr(errors, fields.pop("kind"))
        return kind(fields.pop("what"), **fields)
    lines = [line for line in (folder / "log.txt").read_text(errors="replace").splitlines() if line.strip()]
    return WorkError(
        f"{label}: a rank ended before its work was done",
        found=next((line.strip() for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no message"),
        kept="the newest checkpoint",
        do="run the same command again: it goes on from there",
    )
