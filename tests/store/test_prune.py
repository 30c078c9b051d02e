"""What runs rest on stays; all else goes; nothing goes while somebody uses the store."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.faults import harness as h

from coterie.errors import WorkError
from coterie.store import Action, Store, lease, ls, prune
from coterie.store.durable import HOST


def thing(store, number, inputs=()):
    action = Action("corpora", {"number": number}, {f"input {n}": it.digest for n, it in enumerate(inputs)})
    return store.make(action, lambda folder: h.build(folder, number), label=f"thing {number}")


def run(root, out, numbers, *, finished=True):
    out.mkdir(parents=True, exist_ok=True)
    store = Store(root)
    store.keep(out)
    made = [thing(store, number) for number in numbers]
    store.keep(out, finished=finished)
    store.leave()
    return made


def names(root):
    return {path.name for path in h.object_directories(root)}


def test_kept_by_their_runs(tmp_path):
    root = tmp_path / "store"
    one = run(root, tmp_path / "one", [0, 1])
    two = run(root, tmp_path / "two", [1, 2])
    rows = {row.digest: row for row in ls(Store(root))}
    assert rows[one[0].digest].kept_by == (tmp_path / "one",)
    assert rows[one[1].digest].kept_by == (tmp_path / "one", tmp_path / "two")
    assert rows[two[1].digest].label == "thing 2"
    assert prune(Store(root)).objects == []
    shutil.rmtree(tmp_path / "two")
    planned = prune(Store(root), dry_run=True)
    assert names(root) == set(rows)
    swept = prune(Store(root))
    assert swept == planned
    assert swept.runs == [tmp_path / "two"]
    assert [path.name for path in swept.objects] == [two[1].digest]
    assert names(root) == {it.digest for it in one}
    assert len(list(root.glob("actions/*/*.json"))) == 2
    assert len(list((root / "roots").iterdir())) == 1
    assert swept.bytes >= rows[two[1].digest].size
    assert run(root, tmp_path / "two", [1, 2])[0].reused


def test_a_newer_run_in_the_same_place_lets_go(tmp_path):
    root, out = tmp_path / "store", tmp_path / "out"
    run(root, out, [0])
    run(root, out, [1])
    prune(Store(root))
    assert [row.label for row in ls(Store(root))] == ["thing 1"]


def test_an_unfinished_run_keeps_what_was_there_and_its_checkpoints(tmp_path):
    root, out = tmp_path / "store", tmp_path / "out"
    run(root, out, [0])

    def doomed() -> None:
        store = Store(root)
        store.keep(out)
        thing(store, 1)
        store.scratch(h.action(2)).mkdir(parents=True)
        store.scratch(h.action(3)).mkdir()
        store.make(h.action(2), lambda folder: h.die(), label="thing 2")

    assert h.in_child(doomed) == -signal.SIGKILL
    assert len(list((root / "temp").iterdir())) == 1
    swept = prune(Store(root))
    assert sorted(row.label for row in ls(Store(root))) == ["thing 0", "thing 1"]
    assert [path.name for path in (root / "work").iterdir()] == [h.action(2).key]
    assert [path.name for path in swept.work] == [h.action(3).key]
    assert len(swept.leftovers) == 1
    assert list((root / "temp").iterdir()) == []


def test_inputs_of_what_is_kept_are_kept(tmp_path):
    root, out = tmp_path / "store", tmp_path / "out"
    out.mkdir()
    store = Store(root)
    base = thing(store, 0)
    expert = thing(store, 1, [base])
    thing(store, 2)
    fresh = Store(root)
    last = thing(fresh, 3, [expert])
    fresh.keep(out, finished=True)
    del fresh
    prune(store)
    assert names(root) == {base.digest, expert.digest, last.digest}


def test_not_while_it_is_in_use(tmp_path):
    root = tmp_path / "store"
    h.make(root)
    child = h.start(lambda: h.make(root, 1, slow=30))
    while not h.builds(root, 1):
        time.sleep(0.01)
    with pytest.raises(WorkError, match="in use") as error:
        prune(Store(root))
    assert f"process {child} on {HOST}" in error.value.found
    assert len(prune(Store(root), dry_run=True).objects) == 1
    assert len(names(root)) == 1
    os.kill(child, signal.SIGKILL)
    h.wait(child)
    assert len(prune(Store(root)).objects) == 1
    assert list((root / "users").iterdir()) == []


def test_a_user_without_a_name_counts(tmp_path):
    """Its name could not be written: the disk was full. The lock says enough."""
    root = tmp_path / "store"
    h.make(root)
    reader = lease.Lock(root / "in-use.lock")
    assert reader.take(shared=True)
    with pytest.raises(WorkError, match="in use") as error:
        prune(Store(root))
    assert "could not leave its name" in error.value.found
    reader.free()
    assert len(prune(Store(root)).objects) == 1


def test_a_child_that_leaves_does_not_take_its_parent_along(tmp_path):
    store = Store(tmp_path / "store")
    store.make(h.action(), h.build, label="thing")
    names = list((tmp_path / "store" / "users").iterdir())
    assert h.in_child(store.leave) == 0
    assert list((tmp_path / "store" / "users").iterdir()) == names
    with pytest.raises(WorkError, match="in use"):
        prune(Store(tmp_path / "store"))


def test_whoever_comes_while_it_is_pruned_waits(tmp_path, monkeypatch, heard):
    monkeypatch.setattr(lease, "FIRST_NOTICE", 0.01)
    root = tmp_path / "store"
    h.make(root)

    def slow() -> None:
        gate = lease.Lock(root / "in-use.lock")
        assert gate.take()
        (tmp_path / "pruning").touch()
        time.sleep(0.3)

    child = h.start(slow)
    while not (tmp_path / "pruning").exists():
        time.sleep(0.01)
    assert h.make(root).reused
    assert f"waiting for the store to be pruned: process {child}" in heard.readouterr().err
    h.wait(child)


@pytest.mark.parametrize("locks", [True, False])
def test_users_on_other_hosts_are_never_presumed_dead(tmp_path, monkeypatch, locks):
    root = tmp_path / "store"
    h.make(root)
    if not locks:
        monkeypatch.setattr("coterie.store.lease.fcntl", None)
    far = root / "users" / "~00000000.1.far"
    far.touch()
    left = root / "temp" / "x~00000000.2.far"
    left.mkdir()
    with pytest.raises(WorkError, match="in use") as error:
        prune(Store(root))
    assert "process 1 on far" in error.value.found
    assert str(far) in error.value.do
    assert left.exists()
    far.unlink()
    prune(Store(root))
    assert not left.exists()
    assert names(root) == set()


def test_without_locks_the_living_of_this_host_count(tmp_path, monkeypatch):
    monkeypatch.setattr("coterie.store.lease.fcntl", None)
    root = tmp_path / "store"
    h.make(root)
    living = root / "users" / f"~00000000.{os.getppid()}.{HOST}"
    living.touch()
    with pytest.raises(WorkError, match="in use"):
        prune(Store(root))
    living.unlink()
    assert len(prune(Store(root)).objects) == 1


def test_a_reused_process_number_blocks_nothing(tmp_path):
    root = tmp_path / "store"
    h.make(root)
    (root / "users" / f"~00000000.{os.getppid()}.{HOST}").touch()
    assert len(prune(Store(root)).objects) == 1


def test_temporary_things_go_with_their_maker(tmp_path):
    root = tmp_path / "store"
    h.make(root)
    living, foreign = (root / "temp" / name for name in (f"x~00000000.{os.getpid()}.{HOST}", "x~00000000.1.far"))
    gone = h.start(lambda: None)
    h.wait(gone)
    dead = root / "temp" / f"x~00000000.{gone}.{HOST}"
    for path in (living, foreign, dead):
        path.mkdir()
    assert set(prune(Store(root)).leftovers) == {foreign, dead}
    assert list((root / "temp").iterdir()) == [living]


def test_damaged_root_stops_it(tmp_path):
    root = tmp_path / "store"
    run(root, tmp_path / "out", [0])
    (path,) = (root / "roots").iterdir()
    path.write_bytes(path.read_bytes().replace(b"null", b"nul") + b" ")
    with pytest.raises(WorkError, match="rests on cannot be read") as error:
        prune(Store(root))
    assert error.value.where == str(path)
    assert len(names(root)) == 1
    run(root, tmp_path / "out", [0])
    assert prune(Store(root)).objects == []


def test_runs_of_another_host_are_never_presumed_gone(tmp_path, monkeypatch):
    """Their OUT may be on that host's own disk."""
    root = tmp_path / "store"
    monkeypatch.setattr("coterie.store.objects.HOST", "far")
    run(root, tmp_path / "out", [0])
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "out")
    assert prune(Store(root)).objects == []
    (path,) = (root / "roots").iterdir()
    path.unlink()
    assert len(prune(Store(root)).objects) == 1


def test_quarantine_goes_only_when_asked(tmp_path):
    root = tmp_path / "store"
    run(root, tmp_path / "out", [0])
    (root / "quarantine" / "x").mkdir(parents=True)
    assert prune(Store(root)).leftovers == []
    assert len(prune(Store(root), quarantine=True).leftovers) == 1
    assert list((root / "quarantine").iterdir()) == []


def test_bytes_with_a_link_elsewhere_are_not_freed(tmp_path):
    from coterie.store import link_tree

    root = tmp_path / "store"
    made = thing(Store(root), 0)
    free = prune(Store(root), dry_run=True).bytes
    link_tree(made, tmp_path / "elsewhere")
    assert free > 3000
    assert prune(Store(root), dry_run=True).bytes < 1000
    (row,) = ls(Store(root))
    assert row.size > 3000


def test_nothing_that_is_not_the_stores(tmp_path):
    """Somebody gave a folder of their own as the store."""
    root = tmp_path / "project"
    for name in ("experts/mine/x", "work-of-mine/x", "notes.txt", "corpora/data.jsonl", "blocks/" + "g" * 64):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("mine")
    before = {path for path in root.rglob("*") if path.is_file()}
    h.make(root)
    prune(Store(root))
    assert {path for path in root.rglob("*") if path.is_file()} - before == {root / "in-use.lock"}
    assert before <= set(root.rglob("*"))


def test_no_store_no_pruning(tmp_path):
    assert prune(Store(tmp_path / "nowhere")).objects == []
    assert ls(Store(tmp_path / "nowhere")) == []
    assert not (tmp_path / "nowhere").exists()


@settings(max_examples=8, deadline=None)
@given(st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_against_plain_sets(tmp_path_factory, wanted, chance: random.Random):
    """Whatever runs there were and whichever of them are deleted: what stays is the union of the rest."""
    home = tmp_path_factory.mktemp("prune")
    root = home / "store"
    digests = {}
    for number, numbers in enumerate(wanted):
        made = run(root, home / str(number), sorted(numbers))
        digests |= {it: artifact.digest for it, artifact in zip(sorted(numbers), made, strict=True)}
    gone = {number for number in range(len(wanted)) if chance.random() < 0.5}
    for number in gone:
        (home / str(number)).rmdir()
    prune(Store(root))
    stay = set().union(*[numbers for number, numbers in enumerate(wanted) if number not in gone])
    assert names(root) == {digests[it] for it in stay}
