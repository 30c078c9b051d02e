"""The store: ask for an action's result; what exists is verified and reused, what does not is made once.

    ROOT/<kind>/<digest>/manifest.json ...   objects, read-only
    ROOT/actions/<kind>/<key>.json           action -> object, and how it was made
    ROOT/work/<key>/                         checkpoints of unfinished work
    ROOT/temp/  locks/  quarantine/

A lock only saves work: two processes that ask for one thing at once make it once. Without working locks both make it, and
the second finds that the first has published; nothing breaks.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from coterie.errors import WorkError
from coterie.progress import say
from coterie.recipe.spec import canonical_json
from coterie.store.address import Action
from coterie.store.artifact import Artifact, Planned
from coterie.store.publish import check, discard, publish, read_manifest, replace_synced

Build = Callable[[Path], Mapping[str, Any] | None]


class Store:
    """Content-addressed artifacts in one directory. Safe for many processes at once."""

    dry = False

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        self.used: dict[str, Artifact] = {}
        """Every artifact this object gave out, by action key: what a run rests on."""
        self._verified: set[str] = set()

    def make(self, action: Action, build: Build, *, label: str, tokens: int | None = None) -> Artifact:
        """The result of ``action``: found and verified, or built now.

        Args:
            action: what is asked for.
            build: writes the files into the directory it is given; may return facts about the making (seconds,
                threads) for the record. It is called at most once, and not at all if the result exists.
            label: what it is, for people.
            tokens: tokens it will process, for plans.
        """
        key = action.key
        if key not in self.used:
            found = self.find(action, label)
            self.used[key] = found if found is not None else self._make(action, build, label)
        return self.used[key]

    def find(self, action: Action, label: str = "") -> Artifact | None:
        """The verified result of an action if there is one. What does not verify is quarantined and named."""
        record = self._record(action)
        if record is None:
            return None
        folder = self.root / action.kind / record["object"]
        if not folder.is_dir():
            return None
        return self._open(action.kind, folder, made=record.get("made", {}), label=label)

    def scratch(self, action: Action) -> Path:
        """A directory that outlives the process, for checkpoints; removed when the action's result is published."""
        return self.root / "work" / action.key

    def _record(self, action: Action) -> dict[str, Any] | None:
        try:
            return json.loads(self._record_path(action).read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            say(f"  the record of an action cannot be read and is made again ({error})")
            return None

    def _record_path(self, action: Action) -> Path:
        return self.root / "actions" / action.kind / f"{action.key}.json"

    def _open(self, kind: str, folder: Path, *, made: Mapping[str, Any], label: str) -> Artifact | None:
        full = folder.name not in self._verified
        try:
            manifest = read_manifest(folder)
            check(folder, manifest, full=full)
        except (ValueError, OSError, KeyError) as error:
            self.quarantine(folder, str(error), label)
            return None
        self._verified.add(folder.name)
        files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
        return Artifact(kind, folder.name, folder, files, made, reused=True)

    def quarantine(self, folder: Path, reason: str, label: str = "") -> None:
        """Set aside an object that does not verify; the evidence is kept."""
        place = self.root / "quarantine" / f"{folder.parent.name}-{folder.name[:16]}-{os.urandom(3).hex()}"
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            folder.chmod(0o755)
            os.rename(folder, place)
        except OSError as error:
            raise WorkError(
                "a damaged artifact cannot be set aside",
                where=str(folder), found=f"{reason}; {error}", do="check who owns the store and whether it is read-only",
            ) from None
        say(f"  damaged: {label or folder.parent.name} {folder.name[:12]} ({reason}); set aside in {place}, made again")

    def _make(self, action: Action, build: Build, label: str) -> Artifact:
        with self._lease(action, label):
            found = self.find(action, label)  # another process may have finished while this one waited
            if found is not None:
                return found
            temp = self.root / "temp" / f"{action.key[:16]}-{os.getpid()}-{os.urandom(4).hex()}"
            try:
                temp.mkdir(parents=True)
                started = time.monotonic()
                made = {"seconds": None, **(build(temp) or {})}
                made["seconds"] = made["seconds"] or round(time.monotonic() - started, 3)
                digest, files = publish(temp, self.root / action.kind, action.statement)
            except OSError as error:
                raise self._readable(error, label) from error
            finally:
                discard(temp)
            replace_synced(self._record_path(action), canonical_json({"object": digest, "made": made}).encode())
            shutil.rmtree(self.scratch(action), ignore_errors=True)
        self._verified.add(digest)
        return Artifact(action.kind, digest, self.root / action.kind / digest, files, made)

    def _lease(self, action: Action, label: str) -> FileLock:
        path = self.root / "locks" / f"{action.key}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            try:
                lock.acquire(timeout=0.05)
            except Timeout:
                say(f"  waiting: another process is making {label}")
                lock.acquire()
                lock.release()
                return lock
            lock.release()
            return lock
        except OSError as error:
            raise self._readable(error, label) from error

    def _readable(self, error: OSError, label: str) -> WorkError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(self.root).free
            return WorkError(
                f"the disk is full: {label} could not be written",
                where=str(self.root),
                found=f"{free / 1e9:.2f} GB free",
                kept="everything that was finished before, and the newest checkpoint",
                do="make room (coterie store prune) and run the same command again",
            )
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return WorkError(
                "the store cannot be written",
                where=str(error.filename or self.root), found=error.strerror,
                do="choose another store with --store, or correct its owner and permissions",
            )
        return WorkError(f"{label} could not be made", where=str(error.filename or self.root), found=str(error))


class DryStore(Store):
    """Finds, never makes: asked for something missing it notes it and gives a stand-in."""

    dry = True

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self.plan: list[tuple[str, str, str, int | None]] = []
        """(kind, label, `cached` or `make`, tokens), in order."""

    def make(self, action: Action, build: Build, *, label: str, tokens: int | None = None) -> Artifact:
        key = action.key
        if key not in self.used:
            found = self.find(action, label)
            self.plan.append((action.kind, label, "cached" if found else "make", tokens))
            self.used[key] = found or Planned(action.kind, key, self.root / "planned" / key)
        return self.used[key]
