"""`coterie grow`: wrong requests are refused with exit code 2 before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.test_cli import command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to do"),
        (["--prune", "--merge"], "say what to do"),
        (["--train-on", "--prune"], "--train-on is about a corpus"),
        (["--prune"], "no finished run is here"),
    ],
)
def test_a_wrong_request_is_said(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = command("grow", str(tmp_path), *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
