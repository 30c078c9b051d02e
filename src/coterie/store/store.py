"""The store: ask for an action's result; what exists is verified and reused, what does not is made once.

    ROOT/<kind>/<digest>/manifest.json ...   objects, read-only
    ROOT/actions/<kind>/<key>.json           action -> object, and how it was made
    ROOT/work/<key>/                         checkpoints of unfinished work
    ROOT/roots/                              what each run rests on
    ROOT/temp/  quarantine/  file-digests/  locks/  users/  in-use.lock

A lock only saves work: two processes that ask for one thing at once make it once. Without working locks both make it, and
the second finds that the first has published; nothing breaks.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from coterie.errors import CoterieError, WorkError
from coterie.progress import say
from coterie.spec.digest import digest
from coterie.store.artifact import Action, Artifact, Content, Planned, Step
from coterie.store.digests import FileDigests
from coterie.store.durable import discard, explained, make_directory, owner, replace_synced
from coterie.store.lease import Lock, Presence, lease
from coterie.store.objects import (
    Signature,
    manifest_of,
    objects,
    publish,
    read_object,
    read_root,
    seal,
    signature,
    unseal,
    write_root,
)
from coterie.store.quarantine import DamageError, set_aside


def default_root() -> Path:
    """`$COTERIE_STORE`, else the user's cache folder."""
    given = os.environ.get("COTERIE_STORE")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(cache) / "coterie"


Build = Callable[[Path], Mapping[str, Any] | None]


class Store:
    """Content-addressed artifacts in one directory. Safe for many processes at once."""

    dry = False

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        self.used: dict[str, Artifact] = {}
        """Every artifact this object gave out, by action key: what a run rests on."""
        self.announce: Callable[[str], None] | None = None
        """Told the label of what is about to be made."""
        self._verified: dict[str, Signature] = {}
        self._files = FileDigests(self.root)
        self._presence: Presence | None = None
        self._out: Path | None = None
        self._wanted: dict[str, str | None] = {}
        self._published: dict[str, dict[str, str]] = {}

    def __reduce__(self) -> tuple[type[Store], tuple[Path]]:
        return type(self), (self.root,)  # for other processes: nothing of what this one knows

    def make(self, action: Action, build: Build, *, label: str, tokens: int | None = None) -> Artifact:
        """The result of ``action``: found and verified, or built now.

        Args:
            action: what is asked for.
            build: writes the files into the directory it is given; may return facts about the making (seconds,
                threads) for the record. It is called at most once, and not at all if the result exists.
            label: what it is, for people.
            tokens: tokens it will process, for plans.

        Raises:
            WorkError: the disk is full, the store cannot be written or read. What was finished is kept.
        """
        key = action.key
        known = self.used.get(key)
        if known is None or not self._untouched(known):
            artifact = self.find(action, label)
            if artifact is None:
                with explained(self.root, label), self._lease(action, label):
                    # Another process may have finished while this one waited.
                    artifact = self._read_or_set_aside(action, label) or self._adopt(action, label)
                    if artifact is None:
                        with self._unfinished(action) as temp:
                            if self.announce is not None:
                                self.announce(label)
                            started = time.monotonic()
                            made = dict(build(temp) or {})
                            made.setdefault("seconds", round(time.monotonic() - started, 3))
                            artifact = self._publish(action, temp, label, made)
            # What this object made itself and only read again is still new.
            self.used[key] = artifact if known is None or known.reused else replace(artifact, reused=False)
        return self.used[key]

    def find(self, action: Action, label: str = "") -> Artifact | None:
        """The verified result of an action if there is one. What does not verify is quarantined and named."""
        with explained(self.root, label or action.kind, "read"):
            self.enter()
            try:
                return self._read(action)
            except DamageError as damage:
                if self.dry:
                    say(f"  damaged: {label or action.kind} ({damage.reason}); it will be set aside and made again")
                    return None
            with self._lease(action, label):
                return self._read_or_set_aside(action, label)

    def by_digest(self, kind: str, name: str) -> Artifact | None:
        """The verified object of that digest, whatever action made it; None if there is none, or it is damaged."""
        folder = self.root / kind / name
        with explained(self.root, f"{kind}/{name[:12]}", "read"):
            self.enter()
            try:
                manifest, now = read_object(folder, self._verified.get(name))
            except (FileNotFoundError, DamageError):
                return None
        self._verified[name] = now
        hashes = {file: entry["sha256"] for file, entry in manifest.pop("files").items()}
        return self.used.setdefault(digest(manifest), Artifact(kind, name, folder, hashes, reused=True))

    def scratch(self, action: Action) -> Path:
        """A directory that outlives the process, for checkpoints; removed when the action's result is published."""
        return self.root / "work" / action.key

    def digest_file(self, path: str | Path) -> str:
        """sha256 of a file outside the store, such as a corpus; not computed again while nothing touched the file."""
        self.enter()
        return self._files.digest(Path(path))

    def keep(self, out: str | Path, *, finished: bool = False) -> None:
        """Note that the run in directory ``out`` rests on all that this object gave out, so that prune keeps it.

        Called when a run starts, it adds to what was noted for ``out`` before, and from then on notes what is about to
        be made; called with ``finished``, what only earlier runs in ``out`` needed is let go.
        """
        if self.dry or "COTERIE_JOB" in os.environ:  # what a job makes is noted by the run that it is of
            return
        self._out = Path(out).absolute()
        with explained(self.root, "what the run rests on"):
            self.enter()
            self._wanted = {} if finished else {**read_root(self.root, self._out), **self._wanted}
            self._wanted |= {key: artifact.digest for key, artifact in list(self.used.items())}
            write_root(self.root, self._out, self._wanted)
            self._clean()

    def _clean(self) -> None:
        """Checkpoints of what is published: a process that was stopped just then left them."""
        for folder in (self.root / "work").glob("*"):
            lock = Lock(self.root / "locks" / f"{folder.name}.lock")
            with suppress(OSError):  # without locks, prune does it
                if folder.name in self.used and lock.take():
                    discard(folder)
            lock.free()

    def enter(self) -> None:
        """Say that this process rests on the store, so that nothing is swept; the other methods do it by themselves."""
        if not self.dry and (self._presence is None or self._presence.pid != os.getpid()):
            self._presence = Presence(self.root)

    def leave(self) -> None:
        """Say that this process needs nothing of the store any more. Happens by itself at its end."""
        if self._presence is not None:
            self._presence.leave()
        self._presence = None

    @contextmanager
    def workplace(self) -> Iterator[Path]:
        """A folder that every machine with this store sees; it goes when all went well, else with the next prune."""
        folder = self.root / "temp" / f"jobs{owner()}"
        with explained(self.root, "the jobs"):
            self.enter()
            make_directory(folder)
        yield folder
        discard(folder)

    def dry_twin(self) -> DryStore:
        """To find out what is missing here, without reading again what this one has verified."""
        twin = DryStore(self.root)
        twin._verified, twin._files = self._verified, self._files
        return twin

    def expect(self, twin: DryStore) -> None:
        """Note what jobs of this run are about to make and have made, as far as ``twin`` has found it out."""
        self._wanted |= {key: None if it.planned else it.digest for key, it in twin.used.items()}
        if self._out is not None:
            self.keep(self._out)

    def count_as_made(self, artifact: Artifact) -> None:
        """What other processes made for this one was not there before: it is new, as if this one had made it."""
        for key, known in self.used.items():
            if known.digest == artifact.digest:
                self.used[key] = replace(known, reused=False)

    def _lease(self, action: Action, label: str) -> AbstractContextManager[None]:
        return lease(self.root / "locks" / f"{action.key}.lock", label or action.kind)

    def _read(self, action: Action) -> Artifact | None:
        """Raises DamageError."""
        try:
            record = unseal(self._record_path(action))
            folder = self.root / action.kind / record["object"]
            manifest, now = read_object(folder, self._verified.get(folder.name))
        except FileNotFoundError:
            return None
        files = manifest.pop("files")
        if digest(manifest) != action.key:
            path = self._record_path(action)
            raise DamageError(path, path.stat().st_ino, "the record of an action names another action's object")
        self._verified[folder.name] = now
        hashes = {name: entry["sha256"] for name, entry in files.items()}
        return Artifact(action.kind, folder.name, folder, hashes, record["made"], reused=True)

    def _read_or_set_aside(self, action: Action, label: str) -> Artifact | None:
        while True:
            try:
                return self._read(action)
            except DamageError as damage:
                set_aside(self.root, damage, label)

    def _adopt(self, action: Action, label: str) -> Artifact | None:
        """What lies there without a record (lost, or its process died before it wrote one) is not made twice."""
        if action.kind not in self._published:
            index = self._published[action.kind] = {}
            for folder in objects(self.root, action.kind):
                statement = {name: value for name, value in manifest_of(folder).items() if name != "files"}
                index[digest(statement)] = folder.name
        name = self._published[action.kind].pop(action.key, None)
        if name is None:
            return None
        self._record(action, name, label, {})
        return self._read_or_set_aside(action, label)

    def _record(self, action: Action, name: str, label: str, made: Mapping[str, Any]) -> None:
        record = {"object": name, "label": label, "made": made}
        replace_synced(self._record_path(action), seal(record), self.root / "temp")

    def _record_path(self, action: Action) -> Path:
        return self.root / "actions" / action.kind / f"{action.key}.json"

    def _untouched(self, artifact: Artifact) -> bool:
        try:
            return signature(artifact.path) == self._verified.get(artifact.digest)
        except (OSError, ValueError):
            return False

    @contextmanager
    def _unfinished(self, action: Action) -> Iterator[Path]:
        """A folder to build in; it goes, whatever happens."""
        temp, begun = self.root / "temp" / f"{action.key[:16]}{owner()}", False
        try:
            if self._out is not None:
                self._wanted.setdefault(action.key, None)
                self.keep(self._out)
            make_directory(temp)
            begun = True
            yield temp
        except Exception as error:
            explains_itself = isinstance(error, CoterieError | OSError) and not isinstance(error, FileNotFoundError)
            if explains_itself or not begun or temp.is_dir():
                raise
            raise WorkError(
                "what was being made is gone: the store was moved or deleted meanwhile",
                where=str(temp),
                expected="a folder that stays while it is written",
                found=f"no such folder ({error})",
                kept="what was finished before, where the store is now",
                do="run the same command again, with --store if it is elsewhere now",
            ) from error
        finally:
            discard(temp)

    def _publish(self, action: Action, temp: Path, label: str, made: Mapping[str, Any]) -> Artifact:
        name, files = publish(temp, self.root, action.statement)
        self._record(action, name, label, made)
        discard(temp)
        shutil.rmtree(self.scratch(action), ignore_errors=True)
        folder = self.root / action.kind / name
        self._verified[name] = signature(folder)
        return Artifact(action.kind, name, folder, files, made)


class DryStore(Store):
    """Finds, never makes: whatever it is asked for becomes a step of a plan, and what is missing has a stand-in."""

    dry = True

    def __init__(self, root: str | Path) -> None:
        super().__init__(root)
        self.steps: dict[str, Step] = {}
        """By action key, in the order in which they are needed."""
        self._key_of: dict[str, str] = {}

    def make(self, action: Action, build: Build, *, label: str, tokens: int | None = None) -> Artifact:
        key = action.key
        if key not in self.used:
            found = self.find(action, label)
            origins = (value.of if isinstance(value, Content) else value for value in action.inputs.values())
            needs = tuple(dict.fromkeys(self._key_of[origin] for origin in origins if origin in self._key_of))
            result = found.digest if found else None
            self.steps[key] = Step(key, action.kind, label, found is not None, tokens, needs, result, action.numerics)
            self.used[key] = found or Planned(action.kind, key, self.root / "planned" / key)
            self._key_of[self.used[key].digest] = key
        return self.used[key]
