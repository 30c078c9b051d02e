"""A signal at any moment: no traceback, and a message that says what is so."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
from tests.cli.test_cli import here

import coterie

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


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_at_any_moment_leaves_no_traceback(number: signal.Signals) -> None:
    whole = time.monotonic()
    assert started("recipe", "Train").wait() == 0
    whole = time.monotonic() - whole
    draw = random.Random(int(number))
    faults = []
    for _ in range(8):
        process = started("recipe", "Train")
        time.sleep(draw.uniform(0.03, whole * 1.05))
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
        if "addpackage" in err:  # Python itself was still beginning
            continue
        if "Traceback" in err or "Error" in err or process.returncode not in (0, 130, -number, -signal.SIGINT):
            faults.append((process.returncode, err[-600:]))
    assert faults == []


def test_generate_that_is_stopped_speaks_of_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(coterie, "load", stopped, raising=False)
    assert here(monkeypatch, "generate", str(tmp_path), "the cat") == 130
    said = capsys.readouterr().err
    assert "stopped" in said
    assert not re.search("checkpoint|go on with", said)
    monkeypatch.setattr(import_module("coterie.run.execute"), "execute", lambda *_: stopped(tmp_path))
    assert here(monkeypatch, "run", "recipe.yaml") == 130
    assert "go on with the same command: coterie run recipe.yaml" in capsys.readouterr().err


def test_an_error_that_a_library_makes_of_a_signal_is_the_signal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """pydantic's core does so while it builds a schema."""

    def converted(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt as error:
            raise ValueError("SchemaError: KeyboardInterrupt") from error

    monkeypatch.setattr(import_module("coterie.cli"), "_interrupted", [])
    monkeypatch.setattr(import_module("coterie.run.execute"), "execute", converted)
    assert here(monkeypatch, "run", "recipe.yaml") == 130
    assert "stopped" in (said := capsys.readouterr().err)
    assert "fault of ours" not in said
