"""Each kind of fault finds a mistake: with a bug in a copy of the source, a few trials of its row report a violation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults import campaign
from tests.faults.bugs import BUGS, Bug
from tests.faults.rows import ROWS
from tests.faults.seeded import Copy, planted


def known(why: str) -> Bug:
    return next(bug for bug in BUGS if bug.why.startswith(why))


REMEDY = '                do="make room (coterie store prune) and run the same command again",\n'
SIGTERM = "    signal.signal(signal.SIGTERM, _interrupt)\n"
BUG = {
    "kills": (Bug("cli/__init__.py", SIGTERM, "", "who asks it to end gets no word of what is kept"), 20),
    "damage": (Bug("store/whole.py", 'if found != entry["sha256"]:', "if not found:", "no hash is looked at"), 40),
    "power-loss": (known("a published file is not flushed"), 40),
    "environment": (Bug("store/durable.py", REMEDY, "", "a full disk is named without a remedy"), 40),
    "races": (known("two processes that ask for one thing both make it"), 2),
    "resume": (Bug("experts/loop.py", 'history["schedule"])', "{})", "the learning rate's schedule begins anew"), 4),
    "hostile": (known("names and texts are put into the page as they are"), 75),
    "secrets": (
        Bug("run/publish.py", "        with suppress(ValueError):", "        if False:", "home in `recipe.json`"),
        2,
    ),
}
"""By row: a bug that it must find, and in how many trials."""


def until_found(name: str, count: int) -> None:
    """Trials of a row until one finds something, in the copy."""

    def tell(line: campaign.Line) -> None:
        if line.violations:
            print(f"violation: {line}", flush=True)
            sys.exit()

    campaign.run(next(row for row in ROWS if row.name == name), count, 0, tell)


@pytest.mark.parametrize("row", [row.name for row in ROWS])
def test_its_place_is_there(row: str) -> None:
    file = Path(__file__).parents[2] / "src" / "coterie" / BUG[row][0].file
    compile(planted(BUG[row][0], file.read_text(encoding="utf-8")), file.name, "exec")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("row", [row.name for row in ROWS])
def test_the_row_finds_it(row: str, tmp_path: Path) -> None:
    bug, count = BUG[row]
    (tmp_path / "copy").mkdir()
    copy = Copy(tmp_path / "copy")
    code = f"from tests.faults.test_teeth import until_found; until_found({row!r}, {count})"
    with copy.having(bug):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=copy.root, env=copy.environment, capture_output=True, text=True
        )
    assert "violation:" in done.stdout, f"{count} trials and no violation, though {bug.why}: {done.stderr}"
