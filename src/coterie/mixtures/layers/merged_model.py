"""A merged model before it is written: a configuration, and the artifacts that hold its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from coterie.models.checkpoint import contents
from coterie.store import Artifact


class GateSettings(TypedDict):
    """Of all gates."""

    kind: str
    top_k: int | None
    bias: bool


class MergedSettings(TypedDict):
    """What decides a merged model's configuration besides its base."""

    names: list[str]
    """Of the slots."""
    seats: list[int]
    """The expert in each slot."""
    digests: list[str]
    """Of the distinct experts."""
    gate: GateSettings


@dataclass(frozen=True)
class MergedModel:
    """A merged model: a configuration, and artifacts that hold its experts (all but the gates) and its gates."""

    settings: MergedSettings
    experts: Artifact
    gates: Artifact | None
    """None: all zero."""
    base: Artifact
    tokenizer: Artifact

    @property
    def inputs(self) -> dict[str, str]:
        """Digests of what decides its function."""
        found = {"experts": contents(self.experts), "base": self.base.content("config.json")}
        return found | ({"gates": self.gates.content("gates.safetensors")} if self.gates else {})


@dataclass(frozen=True)
class Cost:
    """What a rule for the shared part costs one expert: its scores by itself and as the only one in the mixture."""

    own: Artifact
    alone: Artifact
    blocks: Artifact
