"""What runs rest on: ``ROOT/roots/<hash of OUT>.json`` names a run's OUT directory, its host and every action it asked
for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coterie.errors import WorkError
from coterie.store.durable import HOST, replace_synced
from coterie.store.objects import DamageError, seal, unseal


@dataclass(frozen=True)
class Root:
    """One run."""

    host: str
    out: Path
    """Its OUT directory; once that is deleted, prune lets go of what only this run needed."""
    actions: Mapping[str, str | None]
    """Action key -> digest of the object, None while it is being made."""
    path: Path


def write_root(root: Path, out: Path, actions: Mapping[str, str | None]) -> None:
    value = {"host": HOST, "out": str(out), "actions": dict(actions)}
    replace_synced(_path(root, out), seal(value), root / "temp")


def read_root(root: Path, out: Path) -> Mapping[str, str | None]:
    """What was written for ``out`` before; nothing if it cannot be read."""
    try:
        actions: Mapping[str, str | None] = unseal(_path(root, out))["actions"]
        return actions
    except (FileNotFoundError, DamageError):
        return {}


def read_roots(root: Path) -> list[Root]:
    """All runs, by OUT.

    Raises:
        WorkError: one cannot be read, so that nobody knows what it rests on.
    """
    roots = []
    for path in sorted((root / "roots").glob("*.json")):
        try:
            value = unseal(path)
        except (DamageError, OSError) as error:
            raise WorkError(
                "what a run rests on cannot be read",
                where=str(path),
                found=str(getattr(error, "reason", error)),
                do="run it again with the same --out, or delete this file to give up what only that run needs",
            ) from None
        roots.append(Root(value["host"], Path(value["out"]), value["actions"], path))
    return sorted(roots, key=lambda it: it.out)


def _path(root: Path, out: Path) -> Path:
    name = hashlib.sha256(f"{HOST}:{out}".encode()).hexdigest()
    return root / "roots" / f"{name}.json"
