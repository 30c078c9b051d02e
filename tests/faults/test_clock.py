"""The clock decides nothing: times of all files scrambled, the clock set back and forth, the same choices."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from tests.faults import harness as h

from coterie.store import Store, prune, verify

YEAR = 365 * 86400


def _scramble(root: Path, generator: random.Random) -> None:
    for path in [root, *root.rglob("*")]:
        when = generator.uniform(0, 120 * YEAR)
        os.utime(path, (when, when))


@pytest.mark.parametrize("step", [-10 * YEAR, -3600, 86400, 10 * YEAR])
def test_no_decision_changes(tmp_path, monkeypatch, step):
    root = tmp_path / "store"
    out = tmp_path / "out"
    out.mkdir()
    digests = [h.make(root, number).digest for number in range(3)]
    store = Store(root)
    for number in range(2):
        store.make(h.action(number), h.build, label="kept")
    store.keep(out, finished=True)
    store.leave()
    (root / "work" / h.action(7).key).mkdir(parents=True)
    for name in ("x~00000000.999999999." + os.uname().nodename, "x~00000000.1.elsewhere"):
        (root / "temp" / name).mkdir()
    plan = prune(Store(root), dry_run=True)

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + step)
    monkeypatch.setattr(time, "time_ns", lambda: int((real() + step) * 1e9))
    _scramble(root, random.Random(os.urandom(8)))

    assert prune(Store(root), dry_run=True) == plan
    assert verify(Store(root)).damaged == []
    assert [h.make(root, number).digest for number in range(3)] == digests
    assert [h.builds(root, number) for number in range(3)] == [1, 1, 1]
    assert prune(Store(root)) == plan
    assert sorted(path.name for path in h.object_directories(root)) == sorted(digests[:2])


def test_scrambled_in_use(tmp_path):
    """Even times that change between two requests of one process: read again, never made again."""
    root = tmp_path / "store"
    store = Store(root)
    first = store.make(h.action(), h.build, label="thing")
    generator = random.Random(os.urandom(8))
    for _ in range(5):
        _scramble(root, generator)
        assert store.make(h.action(), h.build, label="thing") == first
