"""Locks, which save work and never decide what is right: every result is correct without them.

The kernel's ``flock``: whoever dies loses it at once, however it died. One small class serves both uses, the lease on an
action (exclusive, so that one thing is made once) and the presence of a running process in a store (shared, so that nothing
is swept from under it). The price: a file system without locks, or a platform without ``flock``, has neither; the first is
told to the person once, and two processes may then do the same work twice.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coterie.progress import say
from coterie.store.durable import NOT_WRITABLE, make_directory, owner, owner_of

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

POLL, FIRST_NOTICE, NOTICE = 0.05, 0.3, 30.0
"""Seconds between attempts, before the first word about waiting, and between the words after it."""


_held: weakref.WeakSet[Lock] = weakref.WeakSet()
_told: set[Path] = set()


class Lock:
    """An advisory lock on one file, shared or exclusive. A process that ends in any way frees it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def take(self, *, shared: bool = False) -> bool:
        """Try once; False if another holds it. While held, changes between shared and exclusive. OSError if it cannot be
        known: no locks here, or the lock's file cannot be opened."""
        if fcntl is None:
            raise OSError(errno.ENOSYS, "this platform has no flock")
        handle = self._open() if self._handle is None else self._handle
        self._handle = None
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            if os.fstat(handle).st_nlink:  # else deleted meanwhile: it guards no name
                self._handle, handle = handle, -1
                _held.add(self)
        except (BlockingIOError, PermissionError):
            return False
        finally:
            if handle >= 0:
                os.close(handle)
        if self._handle is not None and not shared:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, 0)
                os.pwrite(self._handle, owner().encode(), 0)
        return self.held

    @property
    def held(self) -> bool:
        return self._handle is not None

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                raise
            return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def wait(self, what: str, *, shared: bool = False) -> None:
        """Take it, however long that takes; tells now and then who has it."""
        started = time.monotonic()
        notice = started + FIRST_NOTICE
        while not self.take(shared=shared):
            now = time.monotonic()
            if now >= notice:
                notice = now + NOTICE
                say(f"  waiting for {what}: {self.holder()} has it ({now - started:,.0f} s so far)")
            time.sleep(POLL)

    def holder(self) -> str:
        """Who has it, for people."""
        try:
            made_by = owner_of(self.path.read_text())
        except (OSError, ValueError):
            made_by = None
        return f"process {made_by[0]} on {made_by[1]}" if made_by else "another process"

    def free(self) -> None:
        # Closing, not unlocking: a forked child's copy must not unlock its parent's.
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    __del__ = free


def _free_in_child() -> None:
    # Else a worker that outlives its killed parent would keep the parent's locks.
    for lock in list(_held):
        lock.free()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_free_in_child)


@contextmanager
def lease(path: Path, label: str) -> Iterator[None]:
    """Hold the exclusive lock on ``ROOT/locks/NAME``, or go on without one where there are none."""
    lock = Lock(path)
    try:
        make_directory(path.parent)
        lock.wait(label)
    except OSError as error:
        _go_on_without(path.parent.parent, error)
    try:
        yield
    finally:
        lock.free()


class Presence:
    """Says that this process rests on a store. Holds ``in-use.lock`` shared; ``users/`` names the processes that do."""

    def __init__(self, root: Path) -> None:
        self.pid, self.lock = os.getpid(), Lock(root / "in-use.lock")
        name = root / "users" / owner()
        try:
            make_directory(root)
            self.lock.wait("the store to be pruned", shared=True)
        except OSError as error:
            _go_on_without(root, error)
        with contextlib.suppress(OSError):  # a full or read-only disk can still be read
            name.parent.mkdir(exist_ok=True)
            name.touch()
        self.leave = weakref.finalize(self, _leave, self.pid, self.lock, name)


def _leave(pid: int, lock: Lock, name: Path) -> None:
    if pid == os.getpid():
        lock.free()
        with contextlib.suppress(OSError):
            name.unlink()


def _go_on_without(place: Path, error: OSError) -> None:
    if error.errno in (*NOT_WRITABLE, errno.ENOSPC, errno.EDQUOT) or place in _told:
        return  # what needs the disk will say so
    _told.add(place)
    say(f"  no locks in {place} ({error.strerror or error}): results stay right, but processes may do the same work twice")
