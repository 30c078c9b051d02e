"""Power loss: whatever the disk kept, nothing half-made is visible; and what was reported as made is there."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.faults import harness as h
from tests.faults.power import Disk

from coterie.store import Store, durable, objects


def _violations(tmp_path: Path, states: int, seed: int) -> list[str]:
    """Make two things while watching the disk, lose power at random moments, look at what is left."""
    root = tmp_path / "home" / "store"
    root.parent.mkdir()
    disk = Disk(root.parent)
    digests: list[str] = []

    def watched() -> None:
        disk.watch(lambda: digests.extend(h.make(root, number).digest for number in range(2)))

    watched()
    found, generator = [], random.Random(seed)
    for number in range(states):
        last = number % 4 == 0  # a quarter right after both were reported as made
        moment = len(disk.moments) - 1 if last else generator.randrange(len(disk.moments))
        after = tmp_path / f"crash-{number}"
        disk.crash(moment, generator, after, worst=number % 8 == 0)
        found += [f"moment {moment}: {fault}" for fault in h.broken(after / "store")]
        if last and not all(Store(after / "store").find(h.action(it)) for it in range(2)):
            found.append("what was reported as made is not on the disk")
        again = [h.make(after / "store", it).digest for it in range(2)]
        if again != digests:
            found.append(f"moment {moment}: other digests")
        if (after / "store" / "quarantine").exists():
            found.append(f"moment {moment}: something damaged was visible")
    return found


def _report(tmp_path: Path, states: int, weaken=lambda: None) -> list[str]:
    """The violations, found in a child since neither watching nor weakening can be taken back."""
    seed = random.Random(os.urandom(8)).randrange(2**32)
    report = tmp_path / "report"

    def work() -> None:
        weaken()
        report.write_text("\n".join(_violations(tmp_path, states, seed)))

    assert h.in_child(work) == 0
    return report.read_text().splitlines()


def test_power_loss(tmp_path):
    assert _report(tmp_path, 80) == []


def _skip(which):
    """Leave out the fsyncs of some paths, everywhere in the store."""

    def weaken() -> None:
        real = durable.sync
        for module in (durable, objects):
            module.sync = lambda path: None if which(path) else real(path)

    return weaken


WEAKER = {
    "files": lambda path: path.is_file(),
    "directories": lambda path: path.is_dir(),
    "the manifest": lambda path: path.name == "manifest.json",
    "the object's directory": lambda path: path.is_dir() and "~" in path.name,
    "the directory of objects": lambda path: path.name == "corpora" and path.parent.name == "store",
    "the record": lambda path: path.is_file() and path.parent.name == "temp",
    "the directory of records": lambda path: path.name == "corpora" and path.parent.name == "actions",
    "the store's directory": lambda path: path.name == "store",
}


@pytest.mark.parametrize("without", WEAKER)
def test_every_missing_fsync_shows(tmp_path, without):
    """The test above has teeth: without one of the fsyncs it fails."""
    assert _report(tmp_path, 17, _skip(WEAKER[without])) != []


def test_a_plain_save_file_does_not_survive_it(tmp_path):
    """What the harness finds where weights are written as libraries write them."""
    home, whole = tmp_path / "home", {"w": np.arange(5000, dtype=np.float32)}
    home.mkdir()

    def work() -> None:
        disk, broken, generator = Disk(home), 0, random.Random(0)
        disk.watch(lambda: save_file(whole, home / "model.safetensors"))
        for number in range(20):
            after = tmp_path / f"crash-{number}"
            disk.crash(len(disk.moments) - 1, generator, after)
            file = after / "model.safetensors"
            broken += file.exists() and file.read_bytes() != (home / "model.safetensors").read_bytes()
        os._exit(7 if broken else 0)

    assert h.in_child(work) == 7
