"""Addresses: an action (what was asked for) and its key; what came out is a directory named by its manifest's hash.

Two levels, as build systems have them. The *action key* is a hash of everything that decides the result: the spec, the
digests of the inputs, the format's version, the versions of the libraries that compute it, and the numerics class. Never
part of it: paths, names, hosts, times, logging.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from coterie.spec.digest import canonical_json, digest
from coterie.spec.json_types import Figures

_KINDS = (
    "corpora streams tokenizers blocks weights experts scores routers adaptations "
    "mixtures merged gates evaluations profiles topics selections features libraries"
).split()
FORMATS = dict.fromkeys(_KINDS, 1) | {"routers": 2, "merged": 2}
"""Kinds of artifact and the version of their files. Raise a version when the same request would give other files.
`merged` of version 1, if written on a loaded machine, may hold the numbers of one tensor in the place of another's."""


@dataclass(frozen=True)
class Action:
    """One thing to be made."""

    kind: str
    """One of FORMATS; also the folder in the store."""
    spec: Mapping[str, Any]
    """Everything in the request that decides the result, as JSON values."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Digest of everything it reads, by role."""
    libraries: tuple[str, ...] = ()
    """Distributions whose version decides the result."""
    numerics: str | None = None
    """Device type and precision, where floating point decides the result, such as ``cpu-bf16``. Thread counts are left
    out: they move last bits, and reuse across machines is worth more; what was used is in the record."""

    def __post_init__(self) -> None:
        assert self.kind in FORMATS, self.kind
        assert digest(json.loads(canonical_json(self.statement))) == self.key, "a spec must survive JSON"

    @cached_property
    def statement(self) -> Figures:
        """All that the key is a hash of; stored in the manifest."""
        return {
            "kind": self.kind,
            "format": FORMATS[self.kind],
            "spec": dict(self.spec),
            "inputs": dict(self.inputs),
            "libraries": {name: _version(name) for name in self.libraries},
            "numerics": self.numerics,
        }

    @cached_property
    def key(self) -> str:
        return digest(self.statement)


@cache
def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


class Content(str):
    """A digest of some of an artifact's files, which remembers the artifact: an action that reads it needs that one."""

    of: str
    """The artifact's own digest."""

    def __new__(cls, value: str, of: str = "") -> Content:
        made = super().__new__(cls, value)
        made.of = of
        return made


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


@dataclass(frozen=True)
class Step:
    """One request, with its address."""

    key: str
    """Of the action. What depends on something missing is addressed by what was asked for, not by what will come out."""
    kind: str
    label: str
    """What it is, for people."""
    cached: bool
    tokens: int | None = None
    """Tokens that it will process."""
    needs: tuple[str, ...] = ()
    """Keys of the steps whose results it reads."""
    digest: str | None = None
    """Of the result, where it is there."""
    numerics: str | None = None
    """Device and precision of the arithmetic that decides it, such as `cpu-bf16`; None where none does."""
