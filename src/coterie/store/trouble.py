"""What the system says when it cannot write, in words that help."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from coterie.errors import CoterieError, WorkError
from coterie.store.lease import NOT_WRITABLE

_FULL = ("No space left on device", "os error 28", "Disk quota exceeded", "os error 122", "There is not enough space")
_NEARLY_NOTHING = 64 * 1024
"""Bytes. Libraries that write in native code lose the errno, some even the text; but then the disk is seen to be full."""


@contextmanager
def explained(root: Path, label: str, verb: str = "written") -> Iterator[None]:
    """Turn what goes wrong with files inside into a WorkError that names the place and the remedy."""
    try:
        yield
    except CoterieError:
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
