"""One training of an expert as it was asked for. Needs no torch, so asking for what exists is quick."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

from coterie.experts.expert_settings import ExpertKind
from coterie.experts.train_settings import Train
from coterie.models.device import Precision
from coterie.models.lora_settings import Lora
from coterie.spec.json_types import Figures
from coterie.store import Action, Artifact, Store


@dataclass(frozen=True, kw_only=True)
class Request:
    """See `coterie.experts.expert_actions.train_expert`."""

    store: Store
    action: Action
    start: Artifact
    base: Artifact | None
    sources: tuple[Artifact, ...]
    weights: list[float] | None
    valid: Artifact | None
    kind: ExpertKind
    train: Train
    lora: Lora | None
    seed: int
    label: str
    where: str
    """`cpu` or `cuda`."""
    precision: Precision

    def payload(self) -> Figures:
        """As JSON values, for other processes."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["store"] = str(self.store.root)
        values["action"] = {f.name: getattr(self.action, f.name) for f in fields(self.action)}
        values |= {name: values[name] and values[name].said() for name in ("start", "base", "valid")}
        values["sources"] = [source.said() for source in self.sources]
        return values | {name: v.model_dump(mode="json") if (v := values[name]) else None for name in ("train", "lora")}

    @classmethod
    def of(cls, payload: Figures) -> Request:
        """The reverse of `payload`."""
        values = dict(payload)
        values["store"] = Store(values["store"])
        values["action"] = Action(**values["action"] | {"libraries": tuple(values["action"]["libraries"])})
        values |= {name: values[name] and Artifact.of(values[name]) for name in ("start", "base", "valid")}
        values["sources"] = tuple(Artifact.of(source) for source in values["sources"])
        values |= {"train": Train(**values["train"]), "lora": Lora(**values["lora"]) if values["lora"] else None}
        return cls(**values)

    @cached_property
    def home(self) -> Path:
        """Where checkpoints go."""
        return self.store.scratch(self.action)

    @property
    def output(self) -> Path:
        """What tracking backends write is to outlive the run."""
        return self.store.root / "tracking" / self.action.key[:16] if self.train.report_to else self.home


def snapshot(action: Action, step: int) -> Action:
    """The action whose result is an expert as it was after ``step`` steps."""
    spec = {**action.spec, "snapshot_step": step}
    return Action(action.kind, spec, action.inputs, action.libraries, action.numerics)
