"""Work whose owner is gone must not go on beside its successor."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path


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
