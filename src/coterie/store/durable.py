"""Writing so that it outlives a power cut, and deleting what may be read-only."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from coterie.store.owner import owner


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
