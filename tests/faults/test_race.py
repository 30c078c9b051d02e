"""Many processes, one store: each thing is made once; without locks it may be made again, and everyone still gets it."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from tests.faults import harness as h

from coterie.store import Store, lease, prune


def _without_locks():
    lease.fcntl = None


def _race(root: Path, processes: int, keys: int, *, prepare=lambda: None, slow: float = 0.02) -> list[dict[str, str]]:
    """Let them loose at the same moment; what each got, by key."""
    gate = root.parent / "go"

    def run() -> None:
        prepare()
        while not gate.exists():
            time.sleep(0.001)
        order = random.Random(os.getpid()).sample(range(keys), keys)
        got = {}
        for number in order:
            artifact = h.make(root, number, slow=slow)
            assert (artifact.path / "inner" / "b.txt").read_text() == "b" * (number + 1)
            got[str(number)] = artifact.digest
        (root.parent / f"got-{os.getpid()}").write_text(json.dumps(got))

    children = [h.start(run) for _ in range(processes)]
    gate.touch()
    assert [h.wait(child) for child in children] == [0] * processes
    return [json.loads((root.parent / f"got-{child}").read_text()) for child in children]


def _alike(root: Path, got: list[dict[str, str]]) -> None:
    assert all(it == got[0] for it in got)
    assert h.broken(root) == []
    assert sorted(path.name for path in h.object_directories(root)) == sorted(got[0].values())
    assert list((root / "temp").iterdir()) == []


def test_each_thing_is_made_once(tmp_path):
    root = tmp_path / "store"
    _alike(root, _race(root, 8, 5))
    assert [h.builds(root, number) for number in range(5)] == [1] * 5


def test_without_locks_all_get_a_whole_result(tmp_path):
    root = tmp_path / "store"
    _alike(root, _race(root, 8, 3, prepare=_without_locks))
    assert sum(h.builds(root, number) for number in range(3)) > 3, "there was no race"


@pytest.mark.parametrize("prepare", [lambda: None, _without_locks], ids=["locks", "no locks"])
def test_damage_found_by_many_at_once(tmp_path, prepare):
    """One sets it aside and makes it again; nobody throws out the new one."""
    root = tmp_path / "store"
    for number in range(3):
        file = h.make(root, number).path / "inner" / "b.txt"
        file.chmod(0o644)
        file.write_text("damaged")
    _alike(root, _race(root, 8, 3, prepare=prepare))
    assert len(list((root / "quarantine").iterdir())) == 3
    if prepare is not _without_locks:
        assert [h.builds(root, number) for number in range(3)] == [2] * 3


@pytest.mark.slow
def test_races_with_kills(tmp_path):
    """40 keys, 16 processes, one killed every so often and replaced: made once plus once a kill at most."""
    root, keys, kills = tmp_path / "store", 40, 30
    generator = random.Random(os.urandom(8))

    def run() -> None:
        for number in random.Random(os.getpid()).sample(range(keys), keys):
            h.make(root, number, slow=0.05)

    children = [h.start(run) for _ in range(16)]
    for _ in range(kills):
        time.sleep(0.1)
        victim = children.pop(generator.randrange(len(children)))
        os.kill(victim, signal.SIGKILL)
        h.wait(victim)
        assert h.broken(root) == []
        children.append(h.start(run))
    assert [h.wait(child) for child in children] == [0] * 16
    assert sum(h.builds(root, number) for number in range(keys)) <= keys + kills
    assert h.broken(root) == []
    assert len(h.object_directories(root)) == keys
    prune(Store(root), dry_run=True)
    assert not (root / "quarantine").exists()
