"""Publishing: nothing appears half-made, and what appears is on the disk.

temp directory -> fsync and hash of every file -> manifest -> fsync of every directory -> rename -> fsync of the parent. The
loser of a race verifies the winner's object and uses it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coterie.errors import WorkError
from coterie.progress import say
from coterie.recipe.spec import canonical_json
from coterie.store.artifact import sha256
from coterie.store.lease import owner
from coterie.store.verify import DamageError, read_object, walk


def publish(folder: Path, root: Path, statement: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Move a finished temp directory to ``root/<kind>/<digest>``.

    Returns:
        the object's digest, and the sha256 of each file.
    """
    files: dict[str, dict[str, Any]] = {}
    try:
        tree = list(walk(folder))
    except ValueError as error:
        raise WorkError("only plain files can be published", where=str(folder), found=str(error)) from None
    assert all(name != "manifest.json" for name, _ in tree), "manifest.json is the store's own file"
    for name, info in tree:
        if stat.S_ISREG(info.st_mode):
            assert info.st_nlink <= 1, f"{name} has another link: whoever has that could change it"
            path = folder / name
            path.chmod(0o444)
            _sync(path)
            files[name] = {"size": info.st_size, "sha256": sha256(path)}
    manifest = canonical_json({**statement, "files": files}).encode()
    digest = hashlib.sha256(manifest).hexdigest()
    write_synced(folder / "manifest.json", manifest)
    (folder / "manifest.json").chmod(0o444)
    for name, info in tree:
        if stat.S_ISDIR(info.st_mode):
            (folder / name).chmod(0o555)
            _sync(folder / name)
    _sync(folder)
    home = root / statement["kind"]
    make_directory(home)
    while not _moved(folder, home / digest, root):
        pass  # what lay there was damaged and is set aside now
    _sync(home)
    (home / digest).chmod(0o555)  # only now: a read-only directory cannot be moved
    return digest, {name: entry["sha256"] for name, entry in files.items()}


def _moved(folder: Path, target: Path, root: Path) -> bool:
    try:
        os.rename(folder, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        try:
            read_object(target)
        except FileNotFoundError:
            return False
        except DamageError as damage:
            set_aside(root, damage)
            return False
    return True


def set_aside(root: Path, damage: DamageError, label: str = "") -> None:
    """Quarantine what does not verify; the evidence is kept. Nothing happens if another process did it already."""
    path = damage.path
    place = root / "quarantine" / f"{path.parent.name}-{path.name}-{os.urandom(3).hex()}"
    try:
        make_directory(place.parent)
        if os.lstat(path).st_ino != damage.inode:  # it was made again meanwhile
            return
        if path.is_dir():
            path.chmod(0o755)
        os.rename(path, place)
    except FileNotFoundError:
        return
    except OSError as error:
        raise WorkError(
            "a damaged artifact cannot be set aside",
            where=str(path),
            found=f"{damage.reason}; {error}",
            do="check who owns the store and whether it is read-only",
        ) from None
    what = label or f"{path.parent.name} {path.stem[:12]}"
    say(f"  damaged: {what} ({damage.reason}); set aside as {place}, to be made again")


def write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


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
    _sync(path.parent)


def make_directory(path: Path) -> None:
    """Make it and its parents, each on the disk."""
    if not path.is_dir():
        make_directory(path.parent)
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def discard(folder: Path) -> None:
    """Delete a directory or file that may be read-only, as far as that is possible."""
    if not folder.is_dir() or folder.is_symlink():
        with contextlib.suppress(OSError):
            folder.unlink(missing_ok=True)
        return
    for path, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            os.chmod(path, 0o755)
    shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows has no handle for that
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
