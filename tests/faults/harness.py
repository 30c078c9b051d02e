"""What the fault tests share: a thing to make, processes to kill, and a slow, independent look at what a store shows."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from coterie.store import Action, Artifact, Store

READS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_DIRECTORY | os.O_NOFOLLOW
NEEDS_ROOM = {"open", "os.mkdir", "os.link", "fsync"}
MOVES = {"os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}


def action(number: int = 0) -> Action:
    return Action("corpora", {"number": number}, {"data": "d" * 64})


def build(folder: Path, number: int = 0, size: int = 3000) -> None:
    (folder / "inner" / "deep").mkdir(parents=True)
    (folder / "inner" / "deep" / "a.bin").write_bytes(hashlib.sha256(str(number).encode()).digest() * (size // 32))
    (folder / "inner" / "b.txt").write_text("b" * (number + 1))
    (folder / "facts.json").write_text(json.dumps({"number": number}))


def make(root: Path, number: int = 0, *, size: int = 3000, slow: float = 0.0, store: Store | None = None) -> Artifact:
    """Make or find one thing; each build leaves a byte in ``builds-<number>`` beside the store. A process that goes on using
    what it got gives the same ``store`` each time."""

    def counted(folder: Path) -> None:
        handle = os.open(root.parent / f"builds-{number}", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, b".")
        os.close(handle)
        time.sleep(slow)
        build(folder, number, size)

    return (store or Store(root)).make(action(number), counted, label=f"thing {number}")


def builds(root: Path, number: int = 0) -> int:
    path = root.parent / f"builds-{number}"
    return path.stat().st_size if path.exists() else 0


def object_directories(root: Path) -> list[Path]:
    return [path for path in root.glob("*/*") if len(path.name) == 64 and path.parent.name not in ("work", "planned")]


def broken(root: Path) -> list[str]:
    """Every visible object that is not what its name says: read plainly, with none of the store's code."""
    faults = []
    for folder in object_directories(root):
        try:
            data = (folder / "manifest.json").read_bytes()
            assert hashlib.sha256(data).hexdigest() == folder.name, "manifest"
            expected = {name: (it["size"], it["sha256"]) for name, it in json.loads(data)["files"].items()}
            found = {
                path.relative_to(folder).as_posix(): (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
                for path in folder.rglob("*")
                if path.is_file() and path.name != "manifest.json"
            }
            assert expected == found, "files"
        except (OSError, AssertionError) as error:
            faults.append(f"{folder}: {error}")
    return faults


def start(function: Callable[[], object], *, user: int | None = None) -> int:
    """Run it in a process of its own; the process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if user is not None:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        function()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> int:
    """Its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def in_child(function: Callable[[], object], *, user: int | None = None) -> int:
    return wait(start(function, user=user))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def watch(step: Callable[[str, str], None]) -> None:
    """Call ``step(event, path)`` before everything this process does that changes a disk. For good: use it in a child.

    Events: open (for writing), os.mkdir, os.link, os.rename, os.remove, os.rmdir, os.chmod, os.truncate, fsync.
    """
    real, busy = os.fsync, False

    def tell(event: str, path: str) -> None:
        nonlocal busy
        if not busy:
            busy = True
            try:
                step(event, path)
            finally:
                busy = False

    def hook(event: str, args: tuple[object, ...]) -> None:
        if (event == "open" and isinstance(args[2], int) and args[2] & ~READS) or event in MOVES | NEEDS_ROOM - {"open"}:
            tell(event, str(args[0]))

    def fsync(handle: int) -> None:
        tell("fsync", os.readlink(f"/proc/self/fd/{handle}") if os.path.exists("/proc/self/fd") else str(handle))
        real(handle)

    os.fsync = fsync
    sys.addaudithook(hook)


def steps_of(function: Callable[[], object], folder: Path) -> int:
    """How many such events it has, counted in a child."""
    log = folder / "steps"
    log.write_text("")
    handle = os.open(log, os.O_WRONLY | os.O_APPEND)

    def counted() -> None:
        watch(lambda event, path: os.write(handle, b"."))
        function()

    assert in_child(counted) == 0
    os.close(handle)
    return log.stat().st_size


def nth(count: int, then: Callable[[str, str], None], *, ever_after: bool = False) -> Callable[[str, str], None]:
    """A step that does ``then`` at the event of that number, counted from 1."""
    seen = 0

    def step(event: str, path: str) -> None:
        nonlocal seen
        seen += 1
        if seen == count or (ever_after and seen > count):
            then(event, path)

    return step


def fresh(folder: Path) -> Iterator[Path]:
    """New store directories, each in a directory of its own."""
    number = 0
    while True:
        home = folder / str(number)
        home.mkdir()
        yield home / "store"
        number += 1
