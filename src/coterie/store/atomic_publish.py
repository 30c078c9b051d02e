"""Publishing: nothing appears half-made, and what appears is on the disk.

temp directory -> fsync and hash of every file -> manifest -> fsync of every directory -> rename -> fsync of the parent. The
loser of a race verifies the winner's object and uses it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from coterie.errors import WorkError
from coterie.progress import say
from coterie.spec.digest import canonical_json
from coterie.store.artifact import sha256
from coterie.store.check import DamageError, read_object, walk
from coterie.store.durable import make_directory, sync, write_synced


def publish(folder: Path, root: Path, statement: Mapping[str, object]) -> tuple[str, dict[str, str]]:
    """Move a finished temp directory to ``root/<kind>/<digest>``.

    Returns:
        the object's digest, and the sha256 of each file.
    """
    digests: dict[str, str] = {}
    sizes: dict[str, int] = {}
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
            sync(path)
            digests[name], sizes[name] = sha256(path), info.st_size
    files = {name: {"size": size, "sha256": digests[name]} for name, size in sizes.items()}
    manifest = canonical_json({**statement, "files": files}).encode()
    digest = hashlib.sha256(manifest).hexdigest()
    write_synced(folder / "manifest.json", manifest)
    (folder / "manifest.json").chmod(0o444)
    for name, info in tree:
        if stat.S_ISDIR(info.st_mode):
            (folder / name).chmod(0o555)
            sync(folder / name)
    sync(folder)
    home = root / str(statement["kind"])
    make_directory(home)
    while not _moved(folder, home / digest, root):
        pass  # what lay there was damaged and is set aside now
    sync(home)
    (home / digest).chmod(0o555)  # only now: a read-only directory cannot be moved
    return digest, digests


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
    place = root / "quarantine" / f"{path.parent.name}-{path.name}-{os.urandom(8).hex()}"
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
