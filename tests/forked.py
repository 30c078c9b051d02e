"""Our command line in processes of its own that import nothing anew: a server loaded torch, transformers and us, and forks.

A process that is started the usual way spends ten seconds of the CPU on imports. What is tested with this is what comes
after; that a fresh interpreter works too is tested in tests/cli.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["peft", "transformers.trainer", "coterie.run.execute", "coterie.experts.training", "coterie.mixtures.load"]
)


class Command:
    """``coterie WORDS`` in a session of its own; used as a `subprocess.Popen` that keeps what is printed.

    Args:
        before: called in the process before the command; it must be picklable.
    """

    def __init__(
        self, *words: str, cwd: Path, env: Mapping[str, str] | None = None, before: Callable[[], None] | None = None
    ) -> None:
        self.args = ["coterie", *words]
        self.printed = Path(tempfile.mkdtemp(prefix="forked-"))
        for name in ("out", "err"):
            (self.printed / name).touch()
        around = {**os.environ, **(env or {})}
        self._process = CONTEXT.Process(target=_run, args=(self.args, str(cwd), around, self.printed, before))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        return self.stdout, self.stderr

    @property
    def stdout(self) -> str:
        """Printed so far."""
        return (self.printed / "out").read_text()

    @property
    def stderr(self) -> str:
        return (self.printed / "err").read_text()

    @property
    def begun(self) -> bool:
        """Whether it is the command by now, and no more a copy of the server."""
        return (self.printed / "begun").exists()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def coterie(*words: str, cwd: Path, timeout: float = 240, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = Command(*words, cwd=cwd, env=env)
    try:
        out, err = command.communicate(timeout)
    finally:
        command.kill()
    return subprocess.CompletedProcess(command.args, command.wait(), out, err)


def _run(words: list[str], cwd: str, env: dict[str, str], printed: Path, before: Callable[[], None] | None) -> None:
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for name, number in (("out", 1), ("err", 2)):
        file = os.open(printed / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1, encoding="utf-8") for number in (1, 2))
    sys.argv = words
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as `coterie.start` does before a command begins
    (printed / "begun").touch()
    from coterie.cli import main

    if before is not None:
        before()
    main()
