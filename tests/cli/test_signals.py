"""A signal at any moment: no traceback, and a message that says what is so."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.tiny import llama, write_tokenizer

ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def started(*words: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "coterie", *words],
        cwd=cwd,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENV,
    )


def until_ours(process: subprocess.Popen[str]) -> None:
    """Python itself is up: before, a signal is its own affair."""
    maps = Path(f"/proc/{process.pid}/maps")
    limit = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < limit:
        try:
            if "_ctypes" in maps.read_text() or "_json" in maps.read_text():
                return
        except OSError:
            return
        time.sleep(0.0005)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_leaves_no_traceback(number: signal.Signals) -> None:
    whole = time.monotonic()
    assert started("recipe", "Train").wait() == 0
    whole = time.monotonic() - whole
    draw = random.Random(int(number))
    faults = []
    for _ in range(25):
        process = started("recipe", "Train")
        time.sleep(draw.uniform(0.03, whole * 1.05))
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        if "Traceback" in err or "Error" in err or process.returncode not in (0, 130, -number, -signal.SIGINT):
            faults.append((process.returncode, err[-600:]))
    assert faults == []


def test_generate_that_is_stopped_speaks_of_no_checkpoint(tmp_path: Path) -> None:
    llama(1, context=4096).save_pretrained(tmp_path / "m")
    write_tokenizer(tmp_path / "m")
    process = started("generate", "m", "the cat", "--max-new-tokens", "4000", cwd=tmp_path)
    time.sleep(9)
    assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped" in err
    assert not re.search("checkpoint|go on with", err)
    assert "Traceback" not in err
