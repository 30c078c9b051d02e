"""Faults by the thousand: every case is drawn from a seed, tried, judged by an invariant and counted.

    python -m tests.faults.campaign middle|long [--row NAME]... [--jobs 2] [--seed 0] [--to DIR]
    python -m tests.faults.campaign report DIR          the table of docs/results/faults.md

A row is a kind of fault. Its trials are independent: each gets a generator of its own, made of seed, row and number, so
that one that failed is tried again by itself (``--row kills --only 17``). Results are lines of JSON in ``DIR/ROW.jsonl``: a
campaign that was stopped goes on where it was. A trial in which the fault came too late to do anything is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.faults.row import Draw, Row, Trial
from tests.faults.rows import ROWS
from tests.forked import CONTEXT

FORMS = ("short", "middle", "long")


@dataclass(frozen=True)
class Line:
    """One trial as it is written down."""

    number: int
    kind: str
    what: str
    landed: bool
    violations: tuple[str, ...]
    seconds: float


def one(row: Row, prepared: Path, seed: int, number: int) -> Line:
    """Try one case in a folder of its own. What raises is a violation too: the judge must be able to judge."""
    draw = Draw(f"{seed} {row.name} {number}")
    draw.number = number
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"{row.name}-", ignore_cleanup_errors=True) as home:
        try:
            trial = row.trial(prepared, Path(home), draw)
        except Exception:
            trial = Trial("error", f"seed {seed}, number {number}", violations=(traceback.format_exc(limit=-3),))
    seconds = round(time.monotonic() - started, 2)
    return Line(number, trial.kind, trial.what, trial.landed, tuple(trial.violations), seconds)


def run(
    row: Row,
    count: int,
    seed: int,
    tell: Callable[[Line], None],
    done: set[int] = frozenset(),
    first: int = 0,
    step: int = 1,
) -> None:
    """So many trials that landed, of the numbers ``first, first + step, ...``, leaving out those done before."""
    with tempfile.TemporaryDirectory(prefix=f"{row.name}-prepared-", ignore_cleanup_errors=True) as folder:
        row.prepare(Path(folder))
        number = first
        while count > 0:
            if number not in done:
                line = one(row, Path(folder), seed, number)
                tell(line)
                count -= line.landed
            number += step


def _append(name: str, file: Path, *how: object) -> None:
    """What a worker does: trials of the row of that name, each a line at the end of a file."""
    row = next(row for row in ROWS if row.name == name)
    end = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    count, seed, *rest = how
    run(row, count, seed, lambda line: os.write(end, (json.dumps(asdict(line)) + "\n").encode()), *rest)


def read(file: Path) -> list[Line]:
    """The trials written down."""
    return [Line(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def campaign(rows: list[Row], form: str, seed: int, jobs: int, to: Path) -> list[str]:
    """Every row to its count, several trials at a time; the violations."""
    to.mkdir(parents=True, exist_ok=True)
    (to / "campaign.json").write_text(json.dumps({"form": form, "seed": seed, "jobs": jobs}))
    violations: list[str] = []
    for row in rows:
        file = to / f"{row.name}.jsonl"
        before = read(file)
        missing = row.counts[FORMS.index(form)] - sum(line.landed for line in before)
        done = {line.number for line in before}
        started = time.monotonic()
        workers = []
        for worker in range(jobs):
            share = missing // jobs + (worker < missing % jobs)
            how = (row.name, file, share, seed, done, worker, jobs)
            workers.append(CONTEXT.Process(target=_append, args=how))
        for process in workers:
            process.start()
        for process in workers:
            process.join()
            if process.exitcode:
                violations.append(f"{row.name}: a worker ended with {process.exitcode}")
        lines = read(file)
        found = [
            f"{row.name} --only {line.number}: {line.kind}: {line.what}: {it}" for line in lines for it in line.violations
        ]
        violations += found
        landed = sum(line.landed for line in lines)
        print(
            f"{row.name}: {landed} of {len(lines)} landed, {len(found)} violations, {time.monotonic() - started:.0f} s",
            flush=True,
        )
    return violations


def report(folder: Path) -> str:
    """A table of all rows, then one of each row's kinds."""
    facts = json.loads((folder / "campaign.json").read_text())
    head = ["| fault | what must hold | trials that landed | violations |", "|---|---|---|---|"]
    kinds: list[str] = []
    for row in (row for row in ROWS if (folder / f"{row.name}.jsonl").exists()):
        lines = [line for line in read(folder / f"{row.name}.jsonl") if line.landed or line.violations]
        broken = sum(bool(line.violations) for line in lines)
        head.append(f"| {row.title} | {row.invariant} | {len(lines):,} | {broken} |")
        counted = Counter(line.kind for line in lines)
        kinds += [
            "",
            f"**{row.title}** (`{row.name}`): "
            + ", ".join(f"{kind} {count:,}" for kind, count in sorted(counted.items()))
            + ".",
        ]
    return "\n".join([f"Seed {facts['seed']}, form {facts['form']}.", "", *head, *kinds])


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign")
    parser.add_argument("form", choices=[*FORMS, "report"])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--row", action="append", choices=[row.name for row in ROWS], help="these alone")
    parser.add_argument("--only", type=int, help="this number alone, in this process")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--to", type=Path)
    asked = parser.parse_args(words)
    rows = [row for row in ROWS if not asked.row or row.name in asked.row]
    if asked.form == "report":
        print(report(asked.folder))
        return 0
    if asked.only is not None:
        for row in rows:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                row.prepare(Path(folder))
                print(json.dumps(asdict(one(row, Path(folder), asked.seed, asked.only)), indent=1))
        return 0
    violations = campaign(rows, asked.form, asked.seed, asked.jobs, asked.to or Path(tempfile.mkdtemp(prefix="faults-")))
    print("\n".join(violations))
    return bool(violations)


if __name__ == "__main__":
    sys.exit(main())
