"""Objects on the disk: nothing appears half-made, and nothing is used before it is known to be what was published.

Publishing: temp directory -> fsync and hash of every file -> manifest -> fsync of every directory -> rename -> fsync of the
parent. The loser of a race verifies the winner's object and uses it.

Reading: an object's name is the hash of its manifest, the manifest holds the hash of every file: whatever changes a byte,
deletes or adds a file is noticed. Small files that have no such name (records, roots) carry a hash of themselves. All bytes
are hashed once a process, and again when a file's stat changes: mode bits and sizes prove nothing.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from coterie.errors import WorkError
from coterie.spec.digest import canonical_json
from coterie.spec.json_types import Figures
from coterie.store.artifact import sha256
from coterie.store.durable import HOST, make_directory, replace_synced, sync, write_synced
from coterie.store.quarantine import DamageError, set_aside

Fingerprint = tuple[int, int, int, int, int]
_hashed: dict[Fingerprint, str] = {}
_SETTLED_NS = 50_000_000
"""A file changed less than this ago is hashed again next time: a second change could still get the same time stamp."""

Signature = tuple[tuple[str, int, int, int, int, int], ...]
"""Of each file its name and fingerprint."""


def walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """(path inside, stat) of every file and directory below ``folder``, children before their directory, by name; ValueError
    if something else lies there: a link, a pipe, a device."""
    with os.scandir(folder) as entries:
        children = sorted(entries, key=lambda entry: entry.name)
    for entry in children:
        info = os.lstat(entry.path)  # not entry.stat(): that may have no inode
        if stat.S_ISDIR(info.st_mode):
            for name, inner in walk(Path(entry.path)):
                yield f"{entry.name}/{name}", inner
        elif not stat.S_ISREG(info.st_mode):
            raise ValueError(f"{entry.name} is neither a plain file nor a directory")
        yield entry.name, info


def fingerprint(info: os.stat_result) -> Fingerprint:
    """Changes whenever a file is written: nobody can set the last of these."""
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def digest_once(path: Path) -> str:
    """sha256 of a file: of a file that nobody touched, whatever its name, the bytes are read once a process."""
    info = path.stat()
    identity = fingerprint(info)
    if identity not in _hashed:
        begun, found = time.time_ns(), sha256(path)
        if begun - info.st_ctime_ns < _SETTLED_NS:
            return found
        _hashed[identity] = found
    return _hashed[identity]


def stats(path: Path) -> Iterator[os.stat_result]:
    """Of every file at or below ``path``, of whatever sort; what vanishes meanwhile is left out."""
    names = [os.path.join(folder, name) for folder, _, files in os.walk(path) for name in files] or [str(path)]
    for name in names:
        with contextlib.suppress(OSError):
            yield os.lstat(name)


def signature(folder: Path) -> Signature:
    """Fingerprints of all files of an object; equal means that nothing was touched."""
    return tuple((name, *fingerprint(info)) for name, info in walk(folder) if stat.S_ISREG(info.st_mode))


def read_object(folder: Path, known: Signature | None = None, *, anew: bool = False) -> tuple[Figures, Signature]:
    """The manifest of an object that verifies. Bytes are not hashed again if the signature is ``known``; ``anew``: they are
    hashed whatever this process has seen before.

    Raises:
        FileNotFoundError: there is none.
        DamageError: there is one and it does not verify.
        OSError: it cannot be read (permissions, too many open files); that is no damage.
    """
    inode = os.lstat(folder).st_ino
    try:
        now = signature(folder)  # first, as opening a pipe would wait for ever
        data = (folder / "manifest.json").read_bytes()
        if hashlib.sha256(data).hexdigest() != folder.name:
            raise ValueError("manifest.json is not the one it was published with")
        manifest = json.loads(data)
        sizes = {name: size for name, _, _, size, *_ in now if name != "manifest.json"}
        for name, entry in manifest["files"].items():
            if name not in sizes:
                raise ValueError(f"{name} is missing")
            if sizes.pop(name) != entry["size"]:
                raise ValueError(f"{name} has not {entry['size']} bytes")
            if now != known and (sha256 if anew else digest_once)(folder / name) != entry["sha256"]:
                raise ValueError(f"{name} does not match its sha256")
        if sizes:
            raise ValueError(f"{min(sizes)} does not belong to it")
    except (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamageError(folder, inode, str(error)) from error
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise DamageError(folder, inode, str(error)) from error
    return manifest, now


def objects(root: Path, kind: str) -> list[Path]:
    """The directory of every object of a kind, by digest. Not looked into."""
    return sorted((root / kind).glob("[0-9a-f]" * 64))


def manifest_of(folder: Path) -> Figures:
    """The manifest, unverified; empty if it cannot be read."""
    path = folder / "manifest.json"
    try:
        manifest: Figures = json.loads(path.read_bytes()) if path.is_file() else {}
        return manifest
    except (OSError, ValueError):
        return {}


def seal(value: Mapping[str, object]) -> bytes:
    """JSON with a hash of itself, for small files that are not named by their hash."""
    return canonical_json({**value, "sha256": hashlib.sha256(canonical_json(value).encode()).hexdigest()}).encode()


def unseal(path: Path) -> Figures:
    """Raises FileNotFoundError if there is none, DamageError if it is not as it was written."""
    info = os.lstat(path)
    if not stat.S_ISREG(info.st_mode):
        raise DamageError(path, info.st_ino, "it is no plain file")
    data = path.read_bytes()
    try:
        value: Figures = json.loads(data)
        value.pop("sha256")
        if seal(value) != data:
            raise ValueError("it is not as it was written")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise DamageError(path, info.st_ino, str(error) or repr(error)) from error
    return value


def publish(folder: Path, root: Path, statement: Mapping[str, object]) -> tuple[str, dict[str, str]]:
    """Move a finished temp directory to ``root/<kind>/<digest>``; gives the digest, and the sha256 of each file."""
    digests: dict[str, str] = {}
    sizes: dict[str, int] = {}
    try:
        tree = list(walk(folder))
    except ValueError as error:
        raise WorkError("only plain files can be published", where=str(folder), found=str(error)) from None
    assert all(name != "manifest.json" for name, _ in tree), "manifest.json is the store's own file"
    for name, info in tree:
        if stat.S_ISREG(info.st_mode):
            assert info.st_nlink <= 1, f"{name} has another link: whoever has that could change it"
            path = folder / name
            path.chmod(0o444)
            sync(path)
            digests[name], sizes[name] = sha256(path), info.st_size
    files = {name: {"size": size, "sha256": digests[name]} for name, size in sizes.items()}
    manifest = canonical_json({**statement, "files": files}).encode()
    digest = hashlib.sha256(manifest).hexdigest()
    write_synced(folder / "manifest.json", manifest)
    (folder / "manifest.json").chmod(0o444)
    for name, info in tree:
        if stat.S_ISDIR(info.st_mode):
            (folder / name).chmod(0o555)
            sync(folder / name)
    sync(folder)
    home = root / str(statement["kind"])
    make_directory(home)
    while not _moved(folder, home / digest, root):
        pass  # what lay there was damaged and is set aside now
    sync(home)
    (home / digest).chmod(0o555)  # only now: a read-only directory cannot be moved
    return digest, digests


def _moved(folder: Path, target: Path, root: Path) -> bool:
    try:
        os.rename(folder, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        try:
            read_object(target)
        except FileNotFoundError:
            return False
        except DamageError as damage:
            set_aside(root, damage)
            return False
    return True


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
    """All runs, by OUT; WorkError if one cannot be read, so that nobody knows what it rests on."""
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
    return sorted(roots, key=lambda run: run.out)


def _path(root: Path, out: Path) -> Path:
    name = hashlib.sha256(f"{HOST}:{out}".encode()).hexdigest()
    return root / "roots" / f"{name}.json"
