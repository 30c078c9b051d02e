"""What lies in a store: listed, and read again byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from coterie.errors import WorkError
from coterie.progress import bar, say
from coterie.spec.digest import canonical_json
from coterie.spec.json_types import Figures
from coterie.store.address import FORMATS
from coterie.store.atomic_publish import set_aside
from coterie.store.check import DamageError, manifest_of, objects, read_object, stats, unseal
from coterie.store.roots import read_roots
from coterie.store.store import Store
from coterie.store.trouble import explained


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


def records(root: Path) -> Iterator[Path]:
    """The file of every action's record."""
    yield from sorted((root / "actions").glob("*/*.json"))


def ls(store: Store) -> list[Row]:
    """Every object of a store. Reads no more than names, sizes and manifests.

    Raises:
        WorkError: the store, or what a run rests on, cannot be read.
    """
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
                it.name,
                labels.get(it.name) or _summary(it),
                sum({(info.st_dev, info.st_ino): info.st_size for info in stats(it)}.values()),
                tuple(dict.fromkeys(kept.get(it.name, []))),
            )
            for kind in FORMATS
            for it in objects(store.root, kind)
        ]


def verify(store: Store) -> Verified:
    """Hash every byte of a store; what does not verify is set aside and made again when it is asked for.

    Raises:
        WorkError: the store cannot be read.
    """
    report = Verified()
    with explained(store.root, "the check", "read"), bar("verify", unit="bytes") as progress:
        store.enter()
        everything = [folder for kind in FORMATS for folder in objects(store.root, kind)]
        for path in everything + list(records(store.root)):
            try:
                if path.suffix:
                    unseal(path)
                    report.records += 1
                else:
                    _, files = read_object(path)
                    report.objects += 1
                    report.bytes += sum(size for _, _, _, size, *_ in files)
            except FileNotFoundError:
                continue  # another process set it aside
            except DamageError as damage:
                report.damaged.append((path.relative_to(store.root).as_posix(), damage.reason))
                try:
                    set_aside(store.root, damage)
                except WorkError as error:
                    say(f"  {error}")
            progress.to(report.bytes)
    return report


def _unsealed(path: Path) -> Figures:
    try:
        return unseal(path)
    except (FileNotFoundError, DamageError):
        return {}


def _summary(folder: Path) -> str:
    return canonical_json(manifest_of(folder).get("spec", {}))[:60]
