"""Publishing: nothing appears half-made, and what appears is on the disk.

temp directory -> hash every file -> fsync -> manifest -> fsync of the directory -> rename -> fsync of the parent. The loser
of a race finds the winner's object and uses it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from coterie.errors import WorkError
from coterie.recipe.spec import canonical_json
from coterie.store.artifact import sha256


def publish(folder: Path, home: Path, statement: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """Move a finished temp directory to ``home/<digest>``.

    Returns:
        the object's digest, and the sha256 of each file.
    """
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(p for p in folder.rglob("*") if not p.is_dir()):
        if path.is_symlink() or not path.is_file():
            raise WorkError("only plain files can be published", where=str(path))
        _sync(path)
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": sha256(path)}
    manifest = canonical_json({**statement, "files": files}).encode()
    digest = hashlib.sha256(manifest).hexdigest()
    write_synced(folder / "manifest.json", manifest)
    for path in folder.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
        if path.is_dir():
            _sync(path)
    _sync(folder)
    home.mkdir(parents=True, exist_ok=True)
    target = home / digest
    try:
        os.rename(folder, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        discard(folder)
    _sync(home)
    return digest, {name: entry["sha256"] for name, entry in files.items()}


def write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def replace_synced(path: Path, data: bytes) -> None:
    """Write a small file so that a reader sees the old or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        write_synced(temp, data)
        os.replace(temp, path)
    except BaseException:
        temp.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an object; its hash must be the folder's name."""
    data = (folder / "manifest.json").read_bytes()
    if hashlib.sha256(data).hexdigest() != folder.name:
        raise ValueError("manifest.json is not the one this object was published with")
    return json.loads(data)


def check(folder: Path, manifest: Mapping[str, Any], *, full: bool) -> None:
    """Raise ValueError, naming the file, if the object is not what its manifest says. ``full`` hashes every byte."""
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != entry["size"]:
            raise ValueError(f"{name} has {path.stat().st_size} bytes, expected {entry['size']}")
        if full and sha256(path) != entry["sha256"]:
            raise ValueError(f"{name} does not match its sha256")
    extra = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {*manifest["files"], "manifest.json"}
    if extra:
        raise ValueError(f"{sorted(extra)[0]} does not belong to it")


def discard(folder: Path) -> None:
    """Delete a directory that may be read-only."""
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
