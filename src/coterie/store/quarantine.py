"""What lies in a store and is not what was published: moved aside, so that the evidence is kept and it can be made again."""

from __future__ import annotations

import os
from pathlib import Path

from coterie.errors import WorkError
from coterie.progress import say
from coterie.store.durable import make_directory


class DamageError(Exception):
    """What lies in the store is not what was published. ``inode``: of the very thing that was looked at."""

    def __init__(self, path: Path, inode: int, reason: str) -> None:
        self.path, self.inode, self.reason = path, inode, reason
        super().__init__(f"{path}: {reason}")


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
