"""At the layers: what a recipe says of a mixture, what must be true of its experts, and the merged model made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self, TypedDict

from pydantic import SerializeAsAny, model_validator

from coterie.errors import RequestError
from coterie.experts.train_settings import Train
from coterie.mixtures.layers.layer_gates import ClosedFormGate, LayerGate, Uniform
from coterie.mixtures.place import Neighbours, Place, check_top_k, known
from coterie.models.checkpoint import contents
from coterie.spec.settings import Count, Shares, Spec
from coterie.store import Artifact

if TYPE_CHECKING:
    from coterie.experts.expert_settings import Expert


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


class Tune(Spec):
    """Training of the merged model on a mix of its experts' data."""

    what: Literal["gate", "gate+experts", "all"] = "gate"
    """What moves: the gates; the gates and the experts' feed-forward blocks; everything. The rest stays as it is."""
    tokens: Count
    """Token budget."""
    corpora: Shares | None = None
    """Corpora (their training splits) and their shares of the tokens; a list means equal shares. By default the data of the
    distinct experts in equal parts."""
    train: Train = Train()
    """Training settings; the budget is `tokens` above."""

    @model_validator(mode="after")
    def _one_budget(self) -> Tune:
        if self.train.tokens is not None or self.train.epochs is not None:
            raise ValueError("the budget is tune.tokens: remove tokens and epochs from tune.train")
        self.train.refuse("tune.train", "early_stopping", "snapshots", "parallel")
        return self


class LayersSettings(Place):
    """All of `LayersPlace` but the making."""

    router: SerializeAsAny[LayerGate] = Uniform()
    """Who decides; a kind's name alone takes its defaults."""
    shared: Literal["base", "average"] | None = None
    """What becomes of attention, norms and embeddings where experts differ in them: the base's, or the experts' mean. Needed
    for experts of kind `full` and adapters of attention; what it costs is measured. Others merge exactly."""
    tune: Tune | None = None
    """Train the merged model further."""

    @model_validator(mode="after")
    def _settings_apply(self) -> LayersSettings:
        if not self.slots:
            raise ValueError("a mixture needs at least one slot")
        if self.router.tuned and self.tune is None:
            raise ValueError(f"a {self.router.kind} gate is trained by tune: say tune: {{what: gate, tokens: ...}}")
        if isinstance(self.router, ClosedFormGate) and self.router.example_prompts is not None:
            names = [name for name in dict.fromkeys(self.slots) if not any(c in name for c in "*?[")]
            if missing := [name for name in names if not self.router.example_prompts.get(name)]:
                raise ValueError(f"router.prompts has none for {missing[0]!r}")
        return self

    @property
    def fitted_on(self) -> Literal["texts", "texts of each expert"] | None:
        if self.router.reads_expert_data:
            return "texts of each expert"
        return "texts" if self.tune is not None else None

    @property
    def unfitted(self) -> Self:
        return self if self.fitted_on is None else self.model_copy(update={"router": Uniform(), "tune": None})

    def checked(self, among: Neighbours, where: str) -> Self:
        """Experts of one base, a rule for what is shared where they differ in it, and something that a gate can learn."""
        check_top_k(self.router.slots_kept, self.slots, f"{where}.router.top_k", "slots")
        distinct = list(dict.fromkeys(self.slots))
        for name in distinct:
            self._check_expert(name, among.experts, where)
        for corpus in (self.tune.corpora or {}) if self.tune else ():
            known(corpus, among.corpora, f"{where}.tune.corpora", "corpus")
        learns = self.router.label_training is not None or self.router.tuned
        if len(distinct) == 1 and (learns or (self.tune is not None and self.tune.what == "gate")):
            raise RequestError(
                "all slots share one expert, so there is nothing that a gate could learn to tell apart",
                where=f"{where}.router.kind",
                found=self.router.kind,
                do="use uniform, or seat other experts too",
            )
        return self

    def _check_expert(self, name: str, experts: Mapping[str, Expert], where: str) -> None:
        expert = experts[name]
        if expert.from_ == "fresh":
            raise RequestError(
                f"expert {name!r} starts from fresh weights, and a mixture at layers has one base",
                where=f"{where}.slots",
                expected="from: base",
                do="let it branch from the base, or meet the others at outputs",
            )
        if self.shared is None and not expert.finished and _moves_the_rest(expert, experts):
            raise RequestError(
                f"expert {name!r} is of kind {expert.kind} and differs from the base outside its feed-forward blocks",
                where=f"{where}.slots",
                expected="kind ffn, or lora with feed-forward targets",
                do="train it as kind ffn, or say what becomes of the rest: shared: base or shared: average",
            )
        if self.router.reads_expert_data and not expert.corpus:
            raise RequestError(
                f"a gate of kind {self.router.kind} is fitted on each expert's data, and {name!r} names none",
                where=f"{where}.router.kind",
                do=f"give {name!r} a corpus, or use prompt or uniform",
            )


_FEED_FORWARD = {"gate_proj", "up_proj", "down_proj", "c_fc", "fc1", "fc2", "fc_in", "fc_out"}


def _moves_the_rest(expert: Expert, by_name: Mapping[str, Expert]) -> bool:
    """Whether more than feed-forward blocks can differ from the base, by the recipe alone; files are compared later."""
    if expert.kind == "full" or (expert.from_ in by_name and by_name[expert.from_].kind == "full"):
        return True
    if expert.kind == "ffn":
        return False
    targets = expert.lora.targets if expert.lora else "all-linear"
    return isinstance(targets, str) or not set(targets) <= _FEED_FORWARD
