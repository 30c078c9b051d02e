"""One training of an expert as it was asked for. Needs no torch, so asking for what exists is quick."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from pathlib import Path

from coterie.errors import RequestError
from coterie.experts.expert_settings import ExpertKind
from coterie.experts.train_settings import Train
from coterie.models import device
from coterie.models.checkpoint import contents
from coterie.models.lora_settings import Lora
from coterie.models.weight_precision import stated
from coterie.store import Action, Artifact, Store


@dataclass(frozen=True)
class Request:
    """An expert to be trained, once: what decides it, and how it is called. RequestError: early stopping needs ``valid``."""

    store: Store
    _: KW_ONLY
    start: Artifact
    """The weights to start from; an adapter needs the ``base`` it rests on, and can only be trained on as ``lora``."""
    base: Artifact | None = None
    blocks: Sequence[Artifact]
    """Training blocks, one artifact a source."""
    weights: Sequence[float] | None = None
    """Share of the tokens of each source; by default in proportion to their sizes."""
    valid: Artifact | None = None
    """Held-out blocks: the loss in the facts, and early stopping."""
    kind: ExpertKind = "full"
    """Train all weights, the feed-forward ones, or an adapter with settings ``lora``."""
    train: Train
    """Budget, optimizer, schedule."""
    lora: Lora | None = None
    seed: int
    """Of the order of the data, dropout and an adapter's start."""
    label: str = "expert"

    def __post_init__(self) -> None:
        if self.train.early_stopping is not None and self.valid is None:
            raise RequestError(
                "early stopping needs held-out data", where="train.early_stopping", do="give the corpus a valid split"
            )
        assert (self.lora is None) or self.kind == "lora"

    @cached_property
    def adapter(self) -> Lora | None:
        """Settings of an adapter if one is trained."""
        return (self.lora or Lora()) if self.kind == "lora" else None

    @cached_property
    def shares(self) -> list[float] | None:
        """Weights of several sources that add up to 1."""
        return [w / sum(self.weights) for w in self.weights] if self.weights is not None and len(self.blocks) > 1 else None

    @cached_property
    def where(self) -> str:
        """`cpu` or `cuda`."""
        return device.pick()

    @cached_property
    def precision(self) -> device.Precision:
        return device.precision(self.train.precision, self.where)

    @cached_property
    def action(self) -> Action:
        """What decides the result."""
        if self.kind != "lora" and "adapter_config.json" in self.start.files:
            raise RequestError(
                f"kind {self.kind} cannot start from an adapter",
                where=self.label,
                found="a LoRA adapter",
                do="set kind: lora, or start from a whole model",
            )
        spec = {
            "kind": self.kind,
            "train": self.train.identity(),
            "lora": self.adapter.model_dump(mode="json") if self.adapter else None,
            "seed": self.seed,
            "weights": self.shares,
            **stated(self.start, self.kind),
        }
        inputs = {"start": contents(self.start)}
        inputs |= {f"blocks.{i}": source.content("blocks.safetensors") for i, source in enumerate(self.blocks)}
        inputs |= {"valid": self.valid.content("blocks.safetensors")} if self.valid else {}
        inputs |= {"base": contents(self.base)} if self.base else {}
        libraries = ("torch", "transformers", "peft") if self.adapter else ("torch", "transformers")
        return Action("experts", spec, inputs, libraries, device.numerics(self.where, self.precision))

    def snapshot(self, step: int) -> Action:
        """The action whose result is the expert as it was after ``step`` steps."""
        return replace(self.action, spec={**self.action.spec, "snapshot_step": step})

    @property
    def home(self) -> Path:
        """Where checkpoints go."""
        return self.store.scratch(self.action)

    @property
    def output(self) -> Path:
        """What tracking backends write is to outlive the run."""
        return self.store.root / "tracking" / self.action.key[:16] if self.train.report_to else self.home
