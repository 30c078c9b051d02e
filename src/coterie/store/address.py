"""Addresses: an action (what was asked for) and its key; the digest of what came out is the object's name.

Two levels, as build systems have them. The *action key* is a hash of everything that decides the result: the spec, the
digests of the inputs, the format's version, the versions of the libraries that compute it, and the numerics class. Never
part of it: paths, names, hosts, times, logging.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from coterie.spec.digest import canonical_json, digest
from coterie.spec.json_types import Figures

_KINDS = (
    "corpora streams tokenizers blocks weights experts scores routers adaptations "
    "mixtures merged gates evaluations profiles topics selections features libraries"
).split()
FORMATS = dict.fromkeys(_KINDS, 1) | {"routers": 2}
"""Kinds of artifact and the version of their files. Raise a version when the same request would give other files."""


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
