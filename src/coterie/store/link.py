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
from pathlib import Path

from coterie.errors import RequestError
from coterie.store.artifact import Artifact, sha256
from coterie.store.durable import discard
from coterie.store.owner import dead, owner
from coterie.store.trouble import explained
from coterie.store.verify import walk


def link_tree(artifact: Artifact, target: Path) -> Path:
    """Make ``target`` a directory with the artifact's files and its manifest; an older one that we made is replaced.

    Raises:
        RequestError: something else is there already. It is left alone.
        WorkError: it cannot be written.
    """
    with explained(target.parent, f"{target}"):
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{target.name}~*"):
            if dead(left.name):
                discard(left)
        if target.is_symlink() or target.exists():
            _refuse_foreign(target)
            if _is_current(artifact, target):
                return target
        new, old = (target.with_name(f".{target.name}{owner()}") for _ in range(2))
        try:
            for name in [*artifact.files, "manifest.json"]:
                (new / name).parent.mkdir(parents=True, exist_ok=True)
                _link(artifact.path / name, new / name)
            with contextlib.suppress(FileNotFoundError):
                os.rename(target, old)
            os.rename(new, target)
        finally:
            discard(new)
            discard(old)
    return target


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
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


def _is_current(artifact: Artifact, target: Path) -> bool:
    manifest = target / "manifest.json"
    if not manifest.is_file() or hashlib.sha256(manifest.read_bytes()).hexdigest() != artifact.digest:
        return False
    return all(
        (target / name).is_file() and ((target / name).samefile(artifact.file(name)) or sha256(target / name) == digest)
        for name, digest in artifact.files.items()
    )
