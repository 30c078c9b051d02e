"""Putting an artifact where a person looks for it: hard links into the store, so that it costs no space.

The files stay read-only. Who writes through a link all the same (root can) damages the stored object too; that is caught
when it is read next. A copy is made where links are not possible, such as on another disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from coterie.errors import RequestError
from coterie.spec.digest import canonical_json
from coterie.store.artifact import Artifact, sha256
from coterie.store.durable import dead, discard, explained, owner, sync, write_synced
from coterie.store.objects import walk
from coterie.store.store import Store

_Files = Mapping[str, tuple[Path, str]]
"""Name below the target -> where the file lies now, and its sha256."""


def link_tree(artifact: Artifact, target: Path, parts: Mapping[str, Artifact] | None = None) -> Path:
    """Make ``target`` a directory with the artifact's files and a manifest; an older one that we made is replaced.

    Args:
        parts: further artifacts, by the directory below ``target`` in which each is put. The manifest then names them all.

    Raises:
        RequestError: something else is there already. It is left alone.
        WorkError: it cannot be written.
    """
    files = {
        (Path(place) / name).as_posix(): (part.file(name), digest)
        for place, part in {"": artifact, **(parts or {})}.items()
        for name, digest in part.files.items()
    }
    with explained(target.parent, f"{target}"):
        manifest = _manifest(artifact, parts or {}, files)
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{target.name}~*"):
            if dead(left.name):
                discard(left)
        if target.is_symlink() or target.exists():
            _refuse_foreign(target)
            here = target / "manifest.json"
            if here.is_file() and here.read_bytes() == manifest and _all_there(target, files):
                return target
        new, old = (target.with_name(f".{target.name}{owner()}") for _ in range(2))
        try:
            for name, (origin, _) in files.items():
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                _link(origin, new / name)
            write_synced(new / "manifest.json", manifest)  # empty after a power cut, it would call nothing ours
            (new / "manifest.json").chmod(0o444)
            for folder in {new, *((new / name).parent for name in files)}:
                sync(folder)
            with contextlib.suppress(FileNotFoundError):
                os.rename(target, old)
            os.rename(new, target)
            sync(target.parent)
        finally:
            discard(new)
            discard(old)
    return target


def origin(store: Store, folder: Path, kinds: Sequence[str], place: str = ".") -> Artifact | None:
    """The object of ``store`` that `link_tree` put into ``folder``, if what lies there is still it.

    Args:
        kinds: of which it may be.
        place: where in the folder it is.
    """
    try:
        data = (folder / "manifest.json").read_bytes()
        digest = json.loads(data).get("parts", {".": hashlib.sha256(data).hexdigest()}).get(place, "")
    except (OSError, ValueError, AttributeError):
        return None
    found = next((a for kind in kinds if (a := store.by_digest(kind, digest)) is not None), None) if digest else None
    if found is None or not _all_there(folder / place, {name: (found.file(name), h) for name, h in found.files.items()}):
        return None
    return found


def _manifest(artifact: Artifact, parts: Mapping[str, Artifact], files: _Files) -> bytes:
    """The artifact's own manifest; of several together (or of a checkpoint, which has none) one that names them all."""
    if not parts and artifact.file("manifest.json").is_file():
        return artifact.file("manifest.json").read_bytes()
    entries = {name: {"size": origin.stat().st_size, "sha256": digest} for name, (origin, digest) in files.items()}
    whole = {".": artifact, **parts}
    return canonical_json({"parts": {place: part.digest for place, part in whole.items()}, "files": entries}).encode()


def _link(origin: Path, target: Path) -> None:
    """A link if nobody is meant to write the file, such as the store's; never a second name for a person's own file."""
    if not origin.stat().st_mode & 0o222:
        with contextlib.suppress(OSError):
            os.link(origin, target)
            return
    shutil.copyfile(origin, target)
    sync(target)
    target.chmod(0o444)


def _refuse_foreign(target: Path) -> None:
    """All that lies there must be in the manifest that lies there: nobody else's work is deleted."""
    try:
        known = {"manifest.json", *json.loads((target / "manifest.json").read_bytes())["files"]}
        foreign = [name for name, _ in walk(target) if name not in known and not (target / name).is_dir()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if target.is_dir() and not any(target.iterdir()):
            return
        foreign = [str(error)]
    if foreign:
        raise RequestError(
            "there is something that Coterie did not put there",
            where=str(target),
            found=foreign[0],
            do="move it away, or choose another --out",
        )


def _all_there(target: Path, files: _Files) -> bool:
    return all(
        (target / name).is_file() and ((target / name).samefile(origin) or sha256(target / name) == digest)
        for name, (origin, digest) in files.items()
    )
