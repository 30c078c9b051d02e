"""What a finished piece of work is: a read-only directory with a manifest, named by the manifest's hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypedDict

from coterie.spec.digest import digest
from coterie.spec.json_types import Figures


class Content(str):
    """A digest of some of an artifact's files, which remembers the artifact: an action that reads it needs that one."""

    of: str
    """The artifact's own digest."""

    def __new__(cls, value: str, of: str = "") -> Content:
        made = super().__new__(cls, value)
        made.of = of
        return made


class ArtifactJSON(TypedDict):
    """An artifact as JSON values."""

    kind: str
    digest: str
    path: str
    files: dict[str, str]


@dataclass(frozen=True)
class Artifact:
    """A verified object of the store, or (without a key) a directory outside it that was hashed, such as a checkpoint."""

    kind: str
    digest: str
    """sha256 of the manifest: of the action and of every file."""
    path: Path
    files: Mapping[str, str] = field(default_factory=dict)
    """sha256 of each file, by path inside the directory."""
    made: Mapping[str, object] = field(default_factory=dict)
    """How this machine made it (seconds, threads); not part of the digest."""
    reused: bool = False
    """Whether this call found it instead of making it."""
    whole: str | None = None
    """Digest of the artifact that it is a part of, if it is one."""

    planned = False

    def file(self, name: str) -> Path:
        return self.path / name

    def content(self, *names: str) -> str:
        """Digest of some of the files, so that what depends on these alone is not made again when others change."""
        found = self.files[names[0]] if len(names) == 1 else digest([self.files[n] for n in names])
        return Content(found, self.whole or self.digest)

    def part(self, folder: str, kind: str) -> Artifact:
        """A folder inside it, as an artifact of its own, named by its content. No file is written twice."""
        files = {name.removeprefix(f"{folder}/"): h for name, h in self.files.items() if name.startswith(f"{folder}/")}
        whole = self.whole or self.digest
        return Artifact(kind, digest(files), self.path / folder, files, self.made, self.reused, whole)

    def said(self) -> ArtifactJSON:
        """As JSON values, for other processes."""
        return {"kind": self.kind, "digest": self.digest, "path": str(self.path), "files": dict(self.files)}

    @classmethod
    def of(cls, said: ArtifactJSON) -> Artifact:
        """The reverse of `said`."""
        return cls(said["kind"], said["digest"], Path(said["path"]), said["files"])

    @cached_property
    def facts(self) -> Figures:
        """The figures in ``facts.json``."""
        figures: Figures = json.loads(self.file("facts.json").read_text())
        return figures


@dataclass(frozen=True)
class Planned(Artifact):
    """Stands for an artifact that a dry run found missing. Its digest is of no object, so all that depends on it is
    missing too."""

    planned = True

    def content(self, *names: str) -> str:
        return Content(digest([self.digest, *names]), self.whole or self.digest)

    def part(self, folder: str, kind: str) -> Artifact:
        return Planned(kind, digest([self.digest, folder]), self.path / folder, whole=self.whole or self.digest)


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
