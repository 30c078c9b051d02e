"""A merged model before it is written: a configuration, and the artifacts that hold its parts; and what is done to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from coterie.experts.train_settings import Train
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


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """One training of a merged model."""

    what: Literal["gate", "gate+experts", "all"]
    """What moves; the rest stays as it is, bit by bit."""
    by_label: bool = False
    """Gates learn to tell ``blocks`` apart, whose order is that of the distinct experts, instead of on the language-model
    loss."""
    losses: dict[str, float]
    """Coefficients ``balance_by``, ``z_by``, ``entropy_by``."""
    blocks: Sequence[Artifact]
    weights: Sequence[float] | None
    """Of the blocks; None where they are one."""
    train: Train
    seed: int
    label: str
