"""Locks: they say who has them, they die with their holder, and nothing depends on them."""

from __future__ import annotations

import errno
import os
import re
import signal
import time

import pytest
from tests.faults import harness as h

from coterie.store import Store, durable, lease
from coterie.store.lease import Lock


def _until(condition, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def _hold(path, seconds: float = 30) -> int:
    """A process that has the lock, once this returns."""

    def hold() -> None:
        with lease.lease(path, "it"):
            (path.parent / "held").touch()
            time.sleep(seconds)

    child = h.start(hold)
    _until((path.parent / "held").exists)
    return child


def test_owner_names():
    name = "abc" + durable.owner()
    assert durable.owner_of(name) == (os.getpid(), durable.HOST)
    assert not durable.dead(name)
    child = h.start(lambda: None)
    h.wait(child)
    assert durable.dead(f"x~12345678.{child}.{durable.HOST}")
    assert not durable.dead(f"x~12345678.{child}.another.host")
    assert durable.owner_of(f"x~12345678.{child}.another.host") == (child, "another.host")
    for odd in ("", "x", "x~", "x~a.b.c", "a.1.b~"):
        assert durable.owner_of(odd) is None
        assert not durable.dead(odd)


def test_waiting_names_the_holder_now_and_then(tmp_path, monkeypatch, heard):
    monkeypatch.setattr(lease, "FIRST_NOTICE", 0.05)
    monkeypatch.setattr(lease, "NOTICE", 0.2)
    child = _hold(tmp_path / "x.lock", seconds=0.8)
    with lease.lease(tmp_path / "x.lock", "expert code"):
        pass
    lines = heard.readouterr().err.splitlines()
    assert len(lines) >= 3
    for line in lines:
        assert re.search(rf"waiting for expert code: process {child} on {re.escape(durable.HOST)} has it", line)
    assert h.wait(child) == 0


def test_a_dead_holder_frees_it(tmp_path):
    child = _hold(tmp_path / "x.lock")
    assert not Lock(tmp_path / "x.lock").take()
    os.kill(child, signal.SIGKILL)
    h.wait(child)
    assert Lock(tmp_path / "x.lock").take()


def test_a_child_of_a_dead_holder_does_not_keep_it(tmp_path):
    """Workers of a killed training may live on for a while."""
    path = tmp_path / "x.lock"

    def hold() -> None:
        with lease.lease(path, "it"):
            (tmp_path / "worker").write_text(str(h.start(lambda: time.sleep(30))))
            (tmp_path / "held").touch()
            time.sleep(30)

    child = h.start(hold)
    _until((tmp_path / "held").exists)
    assert not Lock(path).take()
    os.kill(child, signal.SIGKILL)
    h.wait(child)
    assert Lock(path).take()
    os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)


def test_a_child_that_ends_does_not_free_its_parents(tmp_path):
    with lease.lease(tmp_path / "x.lock", "it"):
        assert h.in_child(lambda: None) == 0
        assert h.in_child(lambda: Lock(tmp_path / "x.lock").take() and os._exit(5)) == 0


def test_freed_when_the_work_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), lease.lease(tmp_path / "x.lock", "it"):
        raise ZeroDivisionError
    assert Lock(tmp_path / "x.lock").take()


def test_deleted_lock_file(tmp_path, monkeypatch):
    """A lock on a file that lost its name between opening and locking excludes nobody: it is not taken for one."""
    path, real = tmp_path / "x.lock", Lock._open

    def open_and_lose(lock):
        handle = real(lock)
        path.unlink()
        return handle

    lock = Lock(path)
    with monkeypatch.context() as patch:
        patch.setattr(Lock, "_open", open_and_lose)
        assert not lock.take()
    assert lock.take()
    assert not Lock(path).take()


def test_shared_and_exclusive(tmp_path):
    one, two, alone = (Lock(tmp_path / "x.lock") for _ in range(3))
    assert one.take(shared=True)
    assert two.take(shared=True)
    assert not alone.take()
    one.free()
    two.free()
    assert alone.take()
    assert not one.take(shared=True)
    assert alone.take(shared=True)
    assert one.take(shared=True)


@pytest.mark.parametrize("missing", [OSError(errno.ENOLCK, "No locks available"), OSError(errno.EOPNOTSUPP, "no"), None])
def test_no_locks_is_told_once_and_work_goes_on(tmp_path, monkeypatch, heard, missing):
    def refuse(*args):
        raise missing

    if missing is None:
        monkeypatch.setattr(lease, "fcntl", None)
    else:
        monkeypatch.setattr(lease.fcntl, "flock", refuse)
    root = tmp_path / "store"
    assert [h.make(root, number).digest for number in (0, 1, 0)]
    assert h.broken(root) == []
    lines = [line for line in heard.readouterr().err.splitlines() if "no locks" in line]
    assert len(lines) == 1
    assert str(root) in lines[0]


def test_one_that_waited_reuses(tmp_path):
    root = tmp_path / "store"
    child = h.start(lambda: h.make(root, slow=0.5))
    _until(lambda: h.builds(root) == 1)
    assert h.make(root).reused
    assert h.wait(child) == 0
    assert h.builds(root) == 1


def test_who_takes_over_from_a_dead_process_makes_it(tmp_path):
    root = tmp_path / "store"
    child = h.start(lambda: h.make(root, slow=30))
    _until(lambda: h.builds(root) == 1)
    waiting = h.start(lambda: h.make(root))
    time.sleep(0.2)
    os.kill(child, signal.SIGKILL)
    h.wait(child)
    assert h.wait(waiting) == 0
    assert h.builds(root) == 2
    assert Store(root).find(h.action()) is not None
