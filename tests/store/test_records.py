"""`store verify` reads records as it reads objects; and what unfinished work left goes with the run that finished."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.cli.test_cli import here
from tests.faults import harness as h

from coterie.store import Store, prune, verify
from coterie.store.durable import discard


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(3):
        h.make(tmp_path / "store", number)
    assert verify(Store(tmp_path / "store")).damaged == []
    return tmp_path / "store"


def record(root: Path, number: int) -> Path:
    return root / "actions" / "corpora" / f"{h.action(number).key}.json"


def ends(monkeypatch: pytest.MonkeyPatch, root: Path) -> int:
    return here(monkeypatch, "store", "verify", "--store", str(root))


def mended(root: Path) -> None:
    """Everything is found again, and nothing is made twice that was whole."""
    for number in range(3):
        h.make(root, number)
    assert verify(Store(root)).damaged == []
    assert h.broken(root) == []


def test_records_that_were_swapped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = record(root, 0), record(root, 1)
    first = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(first)
    assert ends(monkeypatch, root) == 1
    mended(root)
    assert [h.builds(root, n) for n in range(3)] == [1, 1, 1]


def test_a_record_whose_object_is_gone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = [f for f in h.object_directories(root) if f.name == h.make(root, 1).digest]
    discard(folder)
    report = verify(Store(root))
    ((place, reason),) = report.damaged
    assert h.action(1).key in place
    assert "is gone" in reason
    assert verify(Store(root)).damaged == []
    mended(root)
    assert [h.builds(root, n) for n in range(3)] == [1, 2, 1]


def test_all_records_deleted(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(root / "actions")
    assert ends(monkeypatch, root) == 1
    assert ends(monkeypatch, root) == 0, "what verify can write again it has written again"
    mended(root)
    assert [h.builds(root, n) for n in range(3)] == [1, 1, 1]


def test_a_record_in_a_place_of_another_kind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = root / "actions" / "experts" / record(root, 0).name
    place.parent.mkdir()
    shutil.move(record(root, 0), place)
    assert ends(monkeypatch, root) == 1
    mended(root)


def test_a_damaged_object_is_one_fault(root: Path) -> None:
    folder = h.object_directories(root)[0]
    (folder / "inner" / "b.txt").chmod(0o644)
    (folder / "inner" / "b.txt").write_text("x")
    assert len(verify(Store(root)).damaged) == 1
    assert verify(Store(root)).damaged == []


# checkpoints ------------------------------------------------------------------------------------------------------------


def checkpoints(store: Store, number: int) -> Path:
    """What a process that was stopped leaves between publishing and cleaning up, or writes after it."""
    home = store.scratch(h.action(number)) / "checkpoint-1"
    home.mkdir(parents=True)
    (home / "trainable.safetensors").write_bytes(bytes(1000))
    return home.parent


def test_checkpoints_never_outlive_the_finished_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    h.make(tmp_path / "store")
    store = Store(tmp_path / "store")
    store.keep(out)
    left = checkpoints(store, 0)
    store.make(h.action(), h.build, label="found")
    store.keep(out, finished=True)
    assert not left.exists()


def test_prune_frees_checkpoints_of_what_is_finished(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    store = Store(tmp_path / "store")
    store.keep(out)
    store.make(h.action(), h.build, label="thing")
    store.keep(out)
    store._wanted[h.action(1).key] = None  # about to be made when its process was stopped
    store.keep(out)
    finished, wanted = checkpoints(store, 0), checkpoints(store, 1)
    assert prune(Store(tmp_path / "store"), dry_run=True).work == [finished]
    store.leave()
    swept = prune(Store(tmp_path / "store"))
    assert swept.work == [finished]
    assert swept.bytes == 1000
    assert (finished.exists(), wanted.exists()) == (False, True)
