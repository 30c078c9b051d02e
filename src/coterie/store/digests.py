"""The digest of a person's own file, not computed again while nothing touched it.

Data is known by its bytes, never by its name and size. Hashing tens of gigabytes for each dry run would be a bother, so
what was hashed is noted with the file's stat, whose ctime no program can set: an edit under the same name, size and mtime is
seen. The notes are lines added to one file a host (stats mean nothing on another): many processes may add, a torn or
damaged line is as good as none, and all of it may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from coterie.errors import RequestError, WorkError
from coterie.spec.digest import canonical_json
from coterie.store.artifact import sha256
from coterie.store.durable import HOST
from coterie.store.objects import fingerprint

_SETTLED_NS = 3_000_000_000
"""A file changed less than this ago is not noted: a second change could still get the same time stamp."""


Note = tuple[int | str, ...]
"""The fingerprint of a file, and its sha256."""


class FileDigests:
    """The notes of one store on this host."""

    def __init__(self, root: Path) -> None:
        self.path = root / "file-digests" / f"{HOST}.jsonl"
        self._notes: dict[str, Note] | None = None

    def digest(self, path: Path) -> str:
        """sha256 of a file; RequestError if it cannot be read, WorkError if it changed meanwhile."""
        name = str(path.absolute())
        try:
            before = fingerprint(path.stat())
            noted = self._load().get(name)
            if noted is not None and noted[:-1] == before:
                return str(noted[-1])
            digest = sha256(path)
            after = fingerprint(path.stat())
        except OSError as error:
            raise RequestError("a file cannot be read", where=name, found=error.strerror or str(error)) from error
        if before != after:
            raise WorkError("a file changed while it was read", where=name, do="wait until it is written, and run again")
        if time.time_ns() - after[-1] > _SETTLED_NS:
            self._note(name, (*after, digest))
        return digest

    def _load(self) -> dict[str, Note]:
        if self._notes is None:
            self._notes = {}
            with contextlib.suppress(OSError):
                for line in self.path.read_bytes().splitlines():
                    with contextlib.suppress(ValueError, TypeError):
                        name, *note, check = json.loads(line)
                        if check == _check(name, note):
                            self._notes[name] = tuple(note)
        return self._notes

    def _note(self, name: str, note: Note) -> None:
        self._load()[name] = note
        if not self.path.parent.parent.is_dir():  # a dry run makes no store
            return
        line = canonical_json([name, *note, _check(name, note)]).encode() + b"\n"
        with contextlib.suppress(OSError, UnicodeError):  # the note is a convenience
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(handle, b"\n" + line)  # whatever another writer left torn ends here
            finally:
                os.close(handle)


def _check(name: str, note: Sequence[int | str]) -> str:
    return hashlib.sha256(canonical_json([name, *note]).encode()).hexdigest()[:16]
