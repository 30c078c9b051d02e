"""Power lost at any moment: crash states that a disk may legally have then, and what is made of them.

`tests.faults.power` records every change while something is published, a training saves checkpoints, or experts are merged,
and writes states in which each file and directory is either as it was last flushed or as it was then, by chance. A quarter
are right after all was reported as made, when nothing may be missing.
"""

from __future__ import annotations

import functools
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.faults import harness as h
from tests.faults.power import Disk
from tests.faults.row import Draw, Row, Trial
from tests.invariants.test_resume import Case
from tests.run.small import recipe

import coterie
from coterie.store import Store


@dataclass(frozen=True)
class Work:
    name: str
    store: str
    """Its store, in the folder that is watched."""
    begin: Callable[[Path], None]
    """Before anything is watched."""
    do: Callable[[Path], Any]
    """In the folder; the digests of what was made."""


def _publish(home: Path) -> list[str]:
    return [h.make(home / "store", number).digest for number in range(2)]


def _train(home: Path) -> str:
    torch.set_num_threads(1)
    return Case(home, dropout=True, changes={"save_every": 130}).run(Store(home / "store-1")).digest


def _before_training(home: Path) -> None:
    """What it starts from is there: in a run it is published before."""
    case = Case(home, dropout=True)
    case.run(case.store())
    shutil.rmtree(home / "store-1/experts")
    shutil.rmtree(home / "store-1/actions/experts")


def _recipe(home: Path) -> dict[str, Any]:
    raw = recipe(home / "data", single=None, evaluation=[])
    raw["base"]["pretrain"]["tokens"] = 300
    raw["train"]["tokens"] = 300
    raw["experts"] = [{"name": n, "corpus": n, "kind": "ffn"} for n in ("fruit", "tools")]
    raw["mixtures"] = [{"name": "in", "at": "layers", "slots": ["fruit", "tools"], "router": "ridge"}]
    return raw


def _experts(home: Path) -> None:
    coterie.run(_recipe(home), store=home / "store", out=home / "out", until="experts")


def _merge(home: Path) -> Any:
    done = coterie.run(_recipe(home), store=home / "store", out=home / "out", until="mixtures")
    files = sorted(p for p in (home / "out/mixtures").rglob("*") if p.is_file())
    hashes = {p.relative_to(home).as_posix(): h.hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    return [done.summary["mixtures"], hashes]


WORKS = [
    Work("publish", "store", lambda home: None, _publish),
    Work("checkpoint", "store-1", _before_training, _train),
    Work("merge", "store", _experts, _merge),
]


def record(work: Work, folder: Path, weaken: Callable[[], None] = lambda: None) -> None:
    """Do the work in a child while every change of the disk is written down."""
    home = folder / work.name / "home"
    home.mkdir(parents=True)
    work.begin(home)

    def watched() -> None:
        weaken()
        disk = Disk(home)
        made: list[Any] = []
        disk.watch(lambda: made.append(work.do(home)))
        (home.parent / "made.json").write_text(json.dumps(made[0]))
        (home.parent / "disk.pickle").write_bytes(pickle.dumps(disk))

    assert h.in_child(watched) == 0


@functools.cache
def recorded(work: Work, folder: Path) -> tuple[Disk, Any]:
    if not (folder / work.name).exists():
        record(work, folder)
    home = folder / work.name
    return pickle.loads((home / "disk.pickle").read_bytes()), json.loads((home / "made.json").read_text())


def trial(prepared: Path, home: Path, draw: Draw) -> Trial:
    work = draw.choice(WORKS)
    disk, made = recorded(work, prepared)
    last = draw.random() < 0.25
    moment = len(disk.moments) - 1 if last else draw.randrange(len(disk.moments))
    worst = draw.random() < 0.125
    after = home / "after"
    disk.crash(moment, draw, after, worst=worst)
    store = after / work.store
    bad = h.broken(store) if store.exists() else []
    there = len(h.object_directories(store)) if store.exists() else 0
    try:
        found = json.loads(json.dumps(work.do(after)))
        if found != made:
            bad.append(f"other results: {str(found)[:200]}")
    except Exception as error:
        bad.append(f"the same work does not end: {type(error).__name__}: {str(error)[:300]}")
    if last and len(h.object_directories(store)) != there:
        bad.append("what was reported as made was not on the disk")
    if (store / "quarantine").exists():
        bad.append("something damaged was visible")
    kind = f"{work.name}{', right after it was made' if last else ''}"
    return Trial(kind, f"moment {moment} of {len(disk.moments)}{', the worst' if worst else ''}", violations=tuple(bad))


ROWS = [
    Row(
        "power-loss",
        "the power lost at any moment of a publication, of a training that saves, of a merge",
        "nothing half made is visible, nothing reported as made is gone, the same work ends with the same digests",
        (4, 120, 2000),
        trial,
    )
]
