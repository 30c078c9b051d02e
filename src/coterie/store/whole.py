"""Opening results: what lies there is what was put there, or it is not used.

Whatever `link_tree` puts into a folder has a ``manifest.json`` beside it, with size and hash of every file; a finished run
has a ``results.seal`` with those of its own files and of every such manifest. Both travel with the files, so a copy on
another machine is checked as well as the folder itself, without a store. Each file is hashed once a process, and again when
its stat changes; several at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from coterie.errors import RequestError
from coterie.spec.json_types import Figures
from coterie.store.durable import replace_synced
from coterie.store.objects import digest_once, seal, unseal, walk
from coterie.store.quarantine import DamageError

MANIFEST, SEAL = "manifest.json", "results.seal"
BROKEN = "results.unsealed"
"""Lies in the seal's place while a run goes on; where neither is, somebody took the seal away."""
OWN = ("summary.json", "recipe.json", "plan.json", "metrics.jsonl", "growth.json")
"""What a run writes itself; the report is not among them, being made from them at any time."""
_OBJECT = re.compile("[0-9a-f]{64}")
"""Name of an object of a store: the hash of its manifest."""
_REACH = 4
"""So many folders above what is opened its manifest or seal may lie: OUT/mixtures/NAME/experts/NAME."""


def require_whole(place: Path) -> None:
    """A folder or a file of results, checked against the manifest and the seal that cover it, where there are any.

    Raises:
        RequestError: a byte is not as it was, a file is missing or does not belong; names it, what was expected and found.
    """
    place = place.parent.resolve() / place.name  # of a link itself, not of what it leads to
    homes = [place, *place.parents][: _REACH + 1]
    for home in homes:
        if os.path.lexists(home / SEAL):
            _check(home, _concerning(place, home, _sealed(home)))
            break
        if all(os.path.lexists(home / name) for name in OWN[:3]) and not os.path.lexists(home / BROKEN):
            raise _damaged(home / SEAL, "the seal of a finished run", "no such file")
    for home in homes:
        if os.path.lexists(home / MANIFEST) and (files := _listed(home, place)) is not None:
            _nothing_more(home, place, files)
            _check(home, {name: entry for name, entry in files.items() if (home / name).is_relative_to(place)})
            break


def write_seal(out: Path) -> None:
    """Put a seal on a run's own files, on what grew from it, and on the manifest of every folder with one."""
    paths = [out / name for name in OWN] + sorted(out.glob("grown/*/*"))
    paths += [path for depth in ("*", "*/*") for path in sorted(out.glob(f"{depth}/{MANIFEST}"))]
    files = {
        path.relative_to(out).as_posix(): {"size": path.stat().st_size, "sha256": digest_once(path)}
        for path in paths
        if path.is_file()
    }
    replace_synced(out / SEAL, seal({"files": files}), out)
    (out / BROKEN).unlink(missing_ok=True)


def break_seal(out: Path) -> None:
    """Before anything in ``out`` changes: until the next seal, each folder answers for itself."""
    out.mkdir(parents=True, exist_ok=True)
    (out / BROKEN).touch()
    (out / SEAL).unlink(missing_ok=True)


def _sealed(home: Path) -> Figures:
    try:
        files: Figures = unseal(home / SEAL)["files"]
        return files
    except (DamageError, OSError, KeyError) as error:
        raise _damaged(home / SEAL, "the seal of a finished run", str(getattr(error, "reason", error))) from None


def _concerning(place: Path, home: Path, files: Figures) -> Figures:
    """What a seal says of ``place``: of files in it, and of the manifests that cover it."""
    above = {place, *place.parents}

    def of(path: Path) -> bool:
        return path.is_relative_to(place) or (path.name == MANIFEST and path.parent in above)

    return {name: entry for name, entry in files.items() if of(home / name)}


def _listed(home: Path, place: Path) -> Figures | None:
    """The files that a manifest lists; None if it is not of ours, or not of what is opened."""
    path = home / MANIFEST
    plain = stat.S_ISREG(os.lstat(path).st_mode)
    data = path.read_bytes() if plain else b""
    try:
        files: Figures = json.loads(data)["files"]
        if not all(isinstance(e["size"], int) and isinstance(e["sha256"], str) for e in files.values()):
            raise ValueError("an entry is none")
        if any(".." in Path(name).parts for name in files):
            raise ValueError("it points outside")
        if _OBJECT.fullmatch(home.name) and hashlib.sha256(data).hexdigest() != home.name:
            raise ValueError("its sha256 is not the name of its folder")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if home == place and (not plain or b'"sha256"' in data):
            raise _damaged(path, "the manifest that was put there", str(error) or repr(error)) from None
        return None
    return files if home == place or any((home / name).is_relative_to(place) for name in files) else None


def _nothing_more(home: Path, place: Path, files: Mapping[str, object]) -> None:
    try:
        there = [(place / name, info) for name, info in walk(place)] if place.is_dir() else []
    except ValueError as error:
        raise _damaged(place, "plain files and folders", str(error)) from None
    for path, info in there:
        known = stat.S_ISDIR(info.st_mode) or path == home / MANIFEST or path.relative_to(home).as_posix() in files
        if not known:
            raise _damaged(path, "no such file", f"{info.st_size:,} bytes that nobody put there", "take it away")


def _check(home: Path, files: Figures) -> None:
    """Sizes first, since they cost nothing; then every byte, several files at once."""
    for name, entry in files.items():
        try:
            info = os.lstat(home / name)
        except OSError as error:
            raise _damaged(home / name, f"{entry['size']:,} bytes", error.strerror or str(error)) from None
        if not stat.S_ISREG(info.st_mode) or info.st_size != entry["size"]:
            found = f"{info.st_size:,} bytes" if stat.S_ISREG(info.st_mode) else "no plain file"
            raise _damaged(home / name, f"{entry['size']:,} bytes", found)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        digests = threads.map(lambda name: digest_once(home / name), files)
        for (name, entry), found in zip(files.items(), digests, strict=True):
            if found != entry["sha256"]:
                raise _damaged(home / name, f"sha256 {str(entry['sha256'])[:16]}", f"sha256 {found[:16]}")


def _damaged(path: Path, expected: str, found: str, do: str | None = None) -> RequestError:
    return RequestError(
        "damaged results",
        where=str(path),
        expected=expected,
        found=found,
        kept="everything; nothing was opened",
        do=do or "run the recipe again with the same --out, which puts it right, or copy the folder again",
    )
