"""Seeded bugs: does the default suite see a mistake? Each of `tests.faults.bugs` is put alone into a copy of the source.

    python -m tests.faults.seeded [--only N] [--first-only] [--jobs 1] [--to FILE.jsonl]
    python -m tests.faults.seeded report FILE.jsonl

The tests of the bug's room and the invariants run first, then, if they pass, the rest of the default suite; the first
failure ends it. A test that fails without the bug too has caught nothing: it is left out, and the others go on. Number 0 is
no bug at all: the tests that run first, of every room, must pass. A run goes on where it was; lines of a bug that
has been changed since do not count. Left out are tests/house (the shape of the source) and the table's own test.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

from tests.faults.bugs import BUGS, Bug

ROOT = Path(__file__).parents[2]
LONGEST = 900
"""Seconds of one pytest: a bug that makes something wait for ever is caught by a test's own limit, else by this one."""
NEVER = ("tests/house", "tests/faults/test_seeded.py")
"""They read the source itself, so any edit might fail them."""
BESIDE = {
    "dates.py": ("routing", "corpora", "api"),
    "shares.py": ("routing", "report"),
    "spec": ("recipe", "store"),
    "store": ("store", "faults"),
    "experts": ("experts", "faults/test_runs.py"),
}
"""Tests of rooms that have no folder of tests, or more than one."""


@dataclass(frozen=True)
class Line:
    """What became of one bug."""

    number: int
    """From 1; 0 is no bug."""
    file: str
    why: str
    caught: bool
    by: str | None
    """The test that failed, or what else was seen."""
    seconds: float
    whole: bool
    """Whether all tests were tried; else, if it was not caught, those that run first."""
    flaky: tuple[str, ...] = ()
    """Tests that failed without the bug too."""


def first(file: str) -> list[str]:
    """The tests that are most likely to see a bug in a file of the source."""
    room, *inner = file.split("/")
    found = [f"tests/{name}" for name in BESIDE.get(room, (room,))]
    if room == "mixtures" and inner[0] in ("layers", "adapters", "export"):
        found.insert(0, f"tests/mixtures/{inner[0]}")
    return [path for path in dict.fromkeys([*found, "tests/invariants"]) if (ROOT / path).exists()]


class Copy:
    """A copy of the repository, to put bugs into."""

    def __init__(self, home: Path) -> None:
        self.root = home
        words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
            if name and (ROOT / name).is_file():
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, home / name)
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(home / "src"),
            "PYTHONDONTWRITEBYTECODE": "1",  # compiled files are known by time and size, and a bug may change neither
            "OMP_NUM_THREADS": "1",
        }
        words = [sys.executable, "-c", "import coterie; print(coterie.__file__)"]
        used = subprocess.run(words, cwd=home, env=self.environment, check=True, capture_output=True, text=True).stdout
        assert Path(used.strip()).is_relative_to(home), f"{used.strip()} is imported, which is not the copy"

    @contextmanager
    def having(self, bug: Bug | None) -> Iterator[None]:
        """The bug is in the copy, inside."""
        if bug is None:
            yield
            return
        path = self.root / "src" / "coterie" / bug.file
        whole = path.read_text(encoding="utf-8")
        path.write_text(planted(bug, whole), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(whole, encoding="utf-8")

    def failure(self, where: Sequence[str], without: Sequence[str] = (), *, processes: int = 0) -> str | None:
        """The first test that fails, or None."""
        words = [sys.executable, "-m", "pytest", "-x", "--tb=no", "-rfE", "-p", "no:cacheprovider", *where]
        words += [f"--ignore={path}" for path in NEVER if path not in where]
        words += [w for name in without for w in (("--ignore=" if "::" not in name else "--deselect=") + name,)]
        words += ["-n", str(processes)] if processes else []
        with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryDirectory() as temp:
            words.append(f"--basetemp={temp}/base")
            process = subprocess.Popen(
                words, cwd=self.root, env=self.environment, stdout=printed, stderr=printed, start_new_session=True
            )
            try:
                code = process.wait(LONGEST * (2 if processes else 1))
            except subprocess.TimeoutExpired:
                code = None
            finally:
                with_children(process.pid)
                process.wait()
            printed.seek(0)
            text = printed.read()
        if code is None:
            return f"no end within {LONGEST} s"
        if code in (0, 5):  # 5: no test there
            return None
        found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", text, re.MULTILINE)
        return found[1] if found else f"pytest ended with {code}: {text[-300:]}"


def with_children(leader: int) -> None:
    """End a process and all that it started and left."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def planted(bug: Bug, source: str) -> str:
    """The source with the bug; ValueError if its place is not there once."""
    if source.count(bug.old) != 1:
        raise ValueError(f"{bug.file}: {bug.old!r} occurs {source.count(bug.old)} times")
    return source.replace(bug.old, bug.new)


def tried(copy: Copy, number: int, bug: Bug | None, *, first_only: bool, first_done: bool = False) -> Line:
    """Run the suite against one bug."""
    begun, flaky = time.monotonic(), []
    likely = first(bug.file) if bug else sorted({path for bug in BUGS for path in first(bug.file)})
    stages: list[tuple[list[str], list[str], int]] = [] if first_done else [(likely, [], 0)]
    stages += [] if first_only or bug is None else [(["tests"], likely, 2)]
    by = None
    for where, without, processes in stages:
        while by is None:
            with copy.having(bug):
                by = copy.failure(where, [*without, *flaky], processes=processes)
            if by is None:
                break
            if bug is not None and "::" in by and copy.failure([by]) is not None:
                flaky.append(by)
                by = None
    seconds = round(time.monotonic() - begun, 1)
    file, why = (bug.file, bug.why) if bug else ("", "no bug: everything must pass")
    return Line(number, file, why, by is not None, by, seconds, not first_only, tuple(flaky))


def read(path: Path) -> dict[int, Line]:
    """The newest line of each number that is of the bug that has this number now."""
    found = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        line = Line(**{**json.loads(text), "flaky": tuple(json.loads(text)["flaky"])})
        if line.number == 0 or (line.number <= len(BUGS) and BUGS[line.number - 1].why == line.why):
            found[line.number] = line
    return found


def report(lines: dict[int, Line]) -> str:
    """Counts, and who survived, in Markdown."""
    bugs = [line for number, line in sorted(lines.items()) if number]
    caught = [line for line in bugs if line.caught]
    control = "not tried" if 0 not in lines else "failed" if lines[0].caught else "passed"
    text = [f"{len(caught)} of {len(bugs)} bugs caught, of {len(BUGS)}; without a bug the tests {control}."]
    text += ["", "| bug | in | caught by |", "|---|---|---|"] if bugs else []
    for line in bugs:
        by = f"`{line.by}`" if line.caught else "**survived**" if line.whole else "survived the tests that run first"
        text.append(f"| {line.number}. {line.why} | `{line.file}` | {by} |".replace("\n", " "))
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.seeded")
    parser.add_argument("what", nargs="*", help="nothing, or: report FILE.jsonl")
    parser.add_argument("--only", type=int, action="append", help="this bug alone (may be repeated); 0 is none")
    parser.add_argument("--first-only", action="store_true", help="only the tests most likely to see it")
    parser.add_argument("--jobs", type=int, default=1, help="so many copies at once")
    parser.add_argument("--to", type=Path, default=Path("runs/seeded.jsonl"))
    given = parser.parse_args()
    if given.what:
        print(report(read(Path(given.what[1]))))
        return
    given.to.parent.mkdir(parents=True, exist_ok=True)
    done = read(given.to)
    wanted = given.only if given.only is not None else [*range(1, len(BUGS) + 1), 0]
    ahead = [n for n in wanted if n not in done or not (done[n].caught or done[n].whole or given.first_only)]
    writing, copies = Lock(), SimpleQueue[Copy]()

    def one(number: int) -> None:
        copy = copies.get()
        try:
            bug = BUGS[number - 1] if number else None
            line = tried(copy, number, bug, first_only=given.first_only, first_done=number in done and bool(number))
        finally:
            copies.put(copy)
        with writing, given.to.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line)) + "\n")
            print(
                f"{number:>3} {'caught' if line.caught else 'survived'} {line.seconds:7.1f} s  {line.why}: {line.by}",
                flush=True,
            )

    with tempfile.TemporaryDirectory(prefix="seeded-") as temp, ThreadPoolExecutor(given.jobs) as threads:
        for job in range(given.jobs):
            copies.put(Copy(Path(temp) / str(job)))
        list(threads.map(one, ahead))


if __name__ == "__main__":
    main()
