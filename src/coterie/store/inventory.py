"""What lies in a store: listed, read again byte for byte, and swept where no run rests on it.

Swept by digest, never by age: the clock may be wrong. A run counts while its OUT directory exists, on the host where it ran.
Nothing is swept while any process uses the store, and what a killed sweep leaves is not visible as an object.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from coterie.errors import WorkError
from coterie.progress import bar, say
from coterie.spec.digest import canonical_json, digest
from coterie.spec.json_types import Figures
from coterie.store.artifact import FORMATS
from coterie.store.durable import HOST, dead, discard, explained, owner, owner_of, replace_synced
from coterie.store.lease import Lock
from coterie.store.objects import manifest_of, objects, read_object, read_roots, seal, stats, unseal
from coterie.store.quarantine import DamageError, set_aside
from coterie.store.store import Store


@dataclass(frozen=True)
class Row:
    """One object, for people."""

    kind: str
    digest: str
    label: str
    """What it was called when it was made, else the beginning of its spec."""
    size: int
    """Bytes; a file with many links counts once."""
    kept_by: tuple[Path, ...]
    """OUT directories of the runs that rest on it."""


@dataclass
class Verified:
    """What reading everything showed."""

    objects: int = 0
    records: int = 0
    bytes: int = 0
    damaged: list[tuple[str, str]] = field(default_factory=list)
    """(path inside the store, reason); each was set aside if the store can be written."""
    lost: list[str] = field(default_factory=list)
    """Records that were not there, though their objects were; each was written again if the store can be written."""


def records(root: Path) -> list[Path]:
    """The file of every action's record."""
    return sorted((root / "actions").glob("*/*.json"))


def ls(store: Store) -> list[Row]:
    """Every object of a store. Reads no more than names, sizes and manifests. WorkError if the store, or what a run rests
    on, cannot be read."""
    with explained(store.root, "the list", "read"):
        kept: dict[str, list[Path]] = {}
        for root in read_roots(store.root):
            for digest in root.actions.values():
                kept.setdefault(digest or "", []).append(root.out)
        labels = {}
        for path in records(store.root):
            record = _unsealed(path)
            labels[record.get("object")] = record.get("label")
        return [
            Row(
                kind,
                folder.name,
                labels.get(folder.name) or canonical_json(manifest_of(folder).get("spec", {}))[:60],
                sum({(info.st_dev, info.st_ino): info.st_size for info in stats(folder)}.values()),
                tuple(dict.fromkeys(kept.get(folder.name, []))),
            )
            for kind in FORMATS
            for folder in objects(store.root, kind)
        ]


def verify(store: Store) -> Verified:
    """Hash every byte of a store, and hold records and objects against each other. What does not verify is set aside and
    made again when it is asked for; a record that is missing is written again. WorkError if the store cannot be read."""
    report = Verified()
    with explained(store.root, "the check", "read"), bar("verify", unit="bytes") as progress:
        store.enter()
        there: dict[Path, str] = {}
        for folder in [folder for kind in FORMATS for folder in objects(store.root, kind)]:
            try:
                manifest, files = read_object(folder, anew=True)
            except FileNotFoundError:
                continue  # another process set it aside
            except DamageError as damage:
                _note(store, report, damage)
                continue
            report.objects += 1
            report.bytes += sum(size for _, _, _, size, *_ in files)
            statement = {name: value for name, value in manifest.items() if name != "files"}
            there[store.root / "actions" / folder.parent.name / f"{digest(statement)}.json"] = folder.name
            progress.to(report.bytes)
        _check_records(store, report, there)
    return report


def _check_records(store: Store, report: Verified, there: dict[Path, str]) -> None:
    """Hold every record against the objects that ``there`` are, by the place where the record of each belongs."""
    damaged, found = {path.rpartition("/")[2] for path, _ in report.damaged}, set()
    for path in records(store.root):
        try:
            inode, name = path.stat().st_ino, str(unseal(path).get("object"))
            if name in damaged:  # they are one fault; without its object the record says nothing
                path.unlink()
            elif there.get(path) == name:
                found.add(path)
            elif name in there.values():
                raise DamageError(path, inode, "it names another action's object")
            elif not any((store.root / kind / name).is_dir() for kind in FORMATS):  # else it was published meanwhile
                raise DamageError(path, inode, f"its object {name[:12]} is gone")
            report.records += 1
        except FileNotFoundError:
            continue
        except DamageError as damage:
            _note(store, report, damage)
    for path, name in there.items():
        lock = Lock(store.root / "locks" / f"{path.stem}.lock")
        if path in found or path.exists() or (lock.path.parent.is_dir() and not lock.take()):
            continue  # or whoever makes it is about to write its record
        report.lost.append(path.relative_to(store.root).as_posix())
        try:
            replace_synced(path, seal({"object": name, "label": "", "made": {}}), store.root / "temp")
        except OSError as error:
            say(f"  {path} cannot be written: {error}")
        lock.free()


def _note(store: Store, report: Verified, damage: DamageError) -> None:
    report.damaged.append((damage.path.relative_to(store.root).as_posix(), damage.reason))
    try:
        set_aside(store.root, damage)
    except WorkError as error:
        say(f"  {error}")


def _unsealed(path: Path) -> Figures:
    try:
        return unseal(path)
    except (FileNotFoundError, DamageError):
        return {}


@dataclass
class Pruned:
    """What was swept, or would be."""

    runs: list[Path] = field(default_factory=list)
    """OUT directories that exist no more."""
    objects: list[Path] = field(default_factory=list)
    records: list[Path] = field(default_factory=list)
    work: list[Path] = field(default_factory=list)
    """Checkpoints of work that is finished, or that no remaining run asked for."""
    leftovers: list[Path] = field(default_factory=list)
    """Temporary files of dead processes and, if asked for, the quarantine."""
    bytes: int = 0
    """Freed on the disk: a file with a link elsewhere frees nothing."""
    kept: int = 0
    """Objects that stay."""


def prune(store: Store, *, dry_run: bool = False, quarantine: bool = False) -> Pruned:
    """Delete what no remaining run rests on, whatever ``store`` itself gave out included.

    Args:
        dry_run: only say what would go.
        quarantine: delete damaged artifacts that were set aside, too.

    Raises:
        WorkError: the store is in use, what a run rests on cannot be read, or something cannot be deleted.
    """
    root = store.root
    if not root.is_dir():
        return Pruned()
    with explained(root, "the pruning"):
        store.leave()
        gate = None if dry_run else _alone(root)
        try:
            report, runs = _mark(root, quarantine)
            if not dry_run:
                idle = [*(root / "locks").glob("*"), *(path for path in (root / "users").glob("*") if dead(path.name))]
                # Runs and records first: killed half-way, nothing that is left names what is gone.
                _sweep(root, [*runs, *report.records, *report.objects, *report.work, *report.leftovers, *idle])
        finally:
            if gate is not None:
                gate.free()
    return report


def _alone(root: Path) -> Lock:
    """Keep every other process out of the store, or say which is in it."""
    gate = Lock(root / "in-use.lock")
    try:
        free = gate.take()
    except OSError as error:
        say(f"  no locks in {root} ({error.strerror or error}): going by the names in {root / 'users'}")
        free = True
    users = [path for path in sorted((root / "users").glob("*")) if not dead(path.name)]
    if gate.held:  # then no process of this host is in it: what such a name says, a reused process number perhaps, is old
        users = [path for path in users if (owner_of(path.name) or (0, ""))[1] != HOST]
    if not free or users:
        gate.free()
        named = [made_by for path in users if (made_by := owner_of(path.name))]
        raise WorkError(
            "the store is in use",
            where=str(root),
            found=", ".join(f"process {pid} on {host}" for pid, host in named) or "a process that could not leave its name",
            kept="everything",
            do="wait for it to end" + (f"; if it ended without a word, delete {users[0]}" if free else ""),
        )
    return gate


def _mark(root: Path, quarantine: bool) -> tuple[Pruned, list[Path]]:
    every = {folder.name: folder for kind in FORMATS for folder in objects(root, kind)}
    runs = read_roots(root)
    alive = [run for run in runs if run.out.is_dir() or run.host != HOST]
    for run in runs:
        if run.host != HOST and not run.out.is_dir():
            say(f"  the run {run.out} is on {run.host}: prune there, or delete {run.path} to let it go")
    keys = {key for run in alive for key in run.actions}
    marked: set[str] = set()
    ahead = [digest for run in alive for digest in run.actions.values() if digest]
    while ahead:
        digest = ahead.pop()
        if digest in every and digest not in marked:
            marked.add(digest)
            ahead += manifest_of(every[digest]).get("inputs", {}).values()
    report = Pruned(runs=[run.out for run in runs if run not in alive], kept=len(marked))
    report.objects = [folder for digest, folder in every.items() if digest not in marked]
    report.records = [path for path in records(root) if _unsealed(path).get("object") not in marked]
    finished = {path.stem for path in records(root) if _unsealed(path).get("object") in every}
    report.work = [path for path in sorted((root / "work").glob("*")) if path.name not in keys - finished]
    users = {made_by[1] for path in (root / "users").glob("*") if (made_by := owner_of(path.name))} - {HOST}
    report.leftovers = [path for path in sorted((root / "temp").glob("*")) if _abandoned(path.name, users)]
    if quarantine:
        report.leftovers += sorted((root / "quarantine").glob("*"))
    report.bytes = _freed([*report.objects, *report.work, *report.leftovers])
    return report, [run.path for run in runs if run not in alive]


def _abandoned(name: str, users: set[str]) -> bool:
    """Whether the maker of something temporary is gone: dead here, or on a host from which nobody is in the store."""
    made_by = owner_of(name)
    return dead(name) or (made_by is not None and made_by[1] != HOST and made_by[1] not in users)


def _freed(paths: list[Path]) -> int:
    files: dict[tuple[int, int], list[int]] = {}
    for path in paths:
        for info in stats(path):
            entry = files.setdefault((info.st_dev, info.st_ino), [info.st_size, info.st_nlink])
            entry[1] -= 1
    return sum(size for size, links in files.values() if links <= 0)


def _sweep(root: Path, paths: list[Path]) -> None:
    temp = root / "temp"
    temp.mkdir(exist_ok=True)
    for path in paths:
        if path.is_dir() and path.parent != temp:
            path.chmod(0o755)
            gone = temp / f"{path.name[:16]}{owner()}"
            os.rename(path, gone)  # an object goes whole
            discard(gone)
        else:
            discard(path)
