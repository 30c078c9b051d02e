"""The whole of a recipe, as written and as resolved."""

from __future__ import annotations

from collections import Counter

from pydantic import Field, SerializeAsAny, model_validator

from coterie.evaluation.metrics import Choices, Losses, Metric
from coterie.experts.expert_settings import Expert, Single
from coterie.mixtures.adapters.adapters_place import AdaptersPlace
from coterie.mixtures.layers.layers_place import LayersPlace
from coterie.mixtures.outputs.outputs_place import OutputsPlace
from coterie.mixtures.place import Place
from coterie.models.device import Requested
from coterie.recipe.base import Base, FreshBase
from coterie.select.select_settings import Corpus
from coterie.spec.digest import digest
from coterie.spec.settings import Count, Name, Spec

PLACES = (OutputsPlace, LayersPlace, AdaptersPlace)
METRICS = (Losses, Choices)
"""Those that ship: importing them makes them known."""

RESERVED = frozenset({"base", "fresh", "previous", "best_expert", "oracle", "single", "all"})
"""Names with a meaning of their own in summaries and in `from:`."""


class Recipe(Spec):
    """Everything a run needs: data, base, experts, mixtures, evaluations."""

    name: Name
    """Names the run and its output folder, `runs/NAME`."""
    seed: int = 0
    """Seed of everything that has none of its own."""
    sequence_length: Count = Field(default=256, ge=8)
    """Tokens in a packed sequence, for training and for scoring."""
    precision: Requested = "auto"
    """In which weights that do not train are used, for scores, evaluations and fitted gates: `auto` is the checkpoint's own
    where the device multiplies it faster, fp32 elsewhere. Log-softmax, sums and routers are in fp32 either way."""
    base: Base = FreshBase(init="llama")
    """What experts start from."""
    corpora: dict[Name, Corpus]
    """Documents, by name."""
    experts: tuple[Expert, ...]
    """Experts, each trained once however many slots or mixtures use it."""
    single: Single | None = None
    """Also train one single model on all of it with the same number of tokens, as a reference."""
    mixtures: tuple[SerializeAsAny[Place], ...] = ()
    """Mixtures of experts."""
    evaluation: tuple[SerializeAsAny[Metric], ...] = ()
    """What to measure."""

    @model_validator(mode="after")
    def _names_are_distinct(self) -> Recipe:
        names = [e.name for e in self.experts] + [m.name for m in self.mixtures]
        for name, count in Counter(names).items():
            if count > 1:
                raise ValueError(f"the name {name!r} is used {count} times among experts and mixtures")
            if name in RESERVED:
                raise ValueError(f"the name {name!r} has a meaning of its own: choose another")
        if "all" in self.corpora:
            raise ValueError("a corpus cannot be called 'all': that is the group of all corpora")
        twice = [n for n, count in Counter(e.name for e in self.evaluation).items() if count > 1]
        if twice:
            raise ValueError(f"the evaluation {twice[0]!r} is named twice")
        context = self.base.context if isinstance(self.base, FreshBase) else None
        if context is not None and context < self.sequence_length:
            raise ValueError(f"base.context {context} is below sequence_length {self.sequence_length}")
        if not self.experts and not any(m.own_corpora for m in self.mixtures):
            raise ValueError("a recipe needs at least one expert")
        return self

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON of the resolved recipe and the schema version."""
        return digest(self.model_dump(mode="json", by_alias=True))
