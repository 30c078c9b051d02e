"""Writing so that it outlives a power cut, deleting what may be read-only, and what to say when the system cannot write.

What is temporary has a name that tells who made it, so that it can be known when its maker is gone. Never by age.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coterie.errors import CoterieError, WorkError

HOST = "".join(c if c.isalnum() or c in ".-" else "-" for c in socket.gethostname())[:100] or "unknown"


def owner() -> str:
    """``~<random>.<pid>.<host>``: ends the name of everything temporary."""
    return f"~{os.urandom(4).hex()}.{os.getpid()}.{HOST}"


def owner_of(name: str) -> tuple[int, str] | None:
    """(pid, host) from a name that ends with ``owner()``."""
    parts = name.rpartition("~")[2].split(".", 2)
    return (int(parts[1]), parts[2]) if len(parts) == 3 and parts[1].isdigit() else None


def dead(name: str) -> bool:
    """Whether the process that a name ends with has certainly ended. Of other hosts nothing is certain."""
    made_by = owner_of(name)
    if made_by is None or made_by[1] != HOST or os.name == "nt":  # on Windows, signal 0 is no question
        return False
    try:
        os.kill(made_by[0], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a directory's names, are on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows has no handle for that
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_synced(path: Path, data: bytes) -> None:
    """Write a new file. Only its directory's name for it may still be lost."""
    path.write_bytes(data)
    sync(path)


def replace_synced(path: Path, data: bytes, temp: Path) -> None:
    """Write a small file so that a reader sees the old or the new one, never a part. ``temp``: a folder for the draft."""
    make_directory(path.parent)
    make_directory(temp)
    draft = temp / f"{path.name[:16]}{owner()}"
    try:
        write_synced(draft, data)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync(path.parent)


def make_directory(path: Path) -> None:
    """Make it and its parents, each on the disk."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def discard(path: Path) -> None:
    """Delete a file or a directory that may be read-only, as far as that is possible."""
    if not path.is_dir() or path.is_symlink():
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        return
    for folder, _, _ in os.walk(path):
        with contextlib.suppress(OSError):
            os.chmod(folder, 0o755)
    shutil.rmtree(path, ignore_errors=True)


NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_FULL = ("No space left on device", "os error 28", "Disk quota exceeded", "os error 122", "There is not enough space")
_NEARLY_NOTHING = 64 * 1024
"""Bytes. Libraries that write in native code lose the errno, some even the text; but then the disk is seen to be full."""


@contextmanager
def explained(root: Path, label: str, verb: str = "written") -> Iterator[None]:
    """Turn what goes wrong with files inside into a WorkError that names the place and the remedy."""
    try:
        yield
    except (CoterieError, BrokenPipeError):  # who reads what is printed may stop
        raise
    except Exception as error:
        free = _free(root)
        if _is_full(error) or (free is not None and free < _NEARLY_NOTHING):
            raise WorkError(
                f"the disk is full: {label} could not be written",
                where=str(root),
                found=f"{(free or 0) / 1e9:.2f} GB free ({error})",
                kept="everything that was finished before, and the newest checkpoint",
                do="make room (coterie store prune) and run the same command again",
            ) from error
        if not isinstance(error, OSError):
            raise
        where = str(error.filename or root)
        if error.errno in NOT_WRITABLE and Path(where).is_relative_to(root):
            raise WorkError(
                f"the store cannot be {verb}",
                where=where,
                found=f"{error.strerror} for user {_user()}",
                kept="everything in it",
                do="choose another store with --store, or correct its owner and permissions",
            ) from error
        raise WorkError(
            f"{label}: files could not be {verb}",
            where=where,
            found=str(error),
            kept="everything that was finished before",
            do="see to that place, or choose another store with --store or another folder with --out",
        ) from error


def _is_full(error: BaseException | None) -> bool:
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(text in str(error) for text in _FULL) or _is_full(error.__cause__ or error.__context__)


def _free(root: Path) -> int | None:
    try:
        return shutil.disk_usage(root).free
    except OSError:
        return None


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "?")
