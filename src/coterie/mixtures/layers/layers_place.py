"""Mixtures inside the layers: one base's attention and embeddings, several experts' feed-forward blocks, a gate a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from coterie.errors import RequestError
from coterie.experts.train_settings import Train
from coterie.mixtures.layers.layer_gates import LayersRouter, PromptLayers, UniformLayers
from coterie.mixtures.place import Seats
from coterie.spec.settings import Count, Shares, Spec

if TYPE_CHECKING:
    from coterie.experts.expert_settings import Expert


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


class LayersSpec(Seats):
    """Slots over experts whose feed-forward blocks one gate a layer mixes."""

    at: Literal["layers"]
    """Where experts meet: `layers` merges their feed-forward blocks into one mixture-of-experts model."""
    router: LayersRouter = Field(default_factory=UniformLayers)
    """Who decides; a kind's name alone takes its defaults."""
    shared: Literal["base", "average"] | None = None
    """What becomes of attention, norms and embeddings where experts differ in them: the base's, or the experts' mean. Needed
    for experts of kind `full` and adapters of attention; what it costs is measured. Others merge exactly."""
    tune: Tune | None = None
    """Train the merged model further."""

    @model_validator(mode="after")
    def _settings_apply(self) -> LayersSpec:
        if not self.slots:
            raise ValueError("a mixture needs at least one slot")
        if self.router.kind == "learned" and self.tune is None:
            raise ValueError("a learned gate is trained by tune: say tune: {what: gate, tokens: ...}")
        if isinstance(self.router, PromptLayers):
            missing = [name for name in dict.fromkeys(self.slots) if not any(c in name for c in "*?[")]
            missing = [name for name in missing if not self.router.prompts.get(name)]
            if missing:
                raise ValueError(f"router.prompts has none for {missing[0]!r}")
        return self


def check(mixture: LayersSpec, experts: list[Expert], corpora: Any, where: str) -> LayersSpec:
    """What a mixture inside the layers asks of the experts of a recipe.

    Raises:
        RequestError: experts of different bases; experts that differ in what is shared, without a rule; a gate that nothing
            can be fitted on.
    """
    by_name = {e.name: e for e in experts}
    distinct = list(dict.fromkeys(mixture.slots))
    if mixture.router.top_k is not None and mixture.router.top_k > len(mixture.slots):
        raise RequestError(
            "top_k is above the number of slots",
            where=f"{where}.router.top_k",
            expected=f"at most {len(mixture.slots)}",
            found=str(mixture.router.top_k),
        )
    for name in distinct:
        expert = by_name[name]
        if expert.from_ == "fresh":
            raise RequestError(
                f"expert {name!r} starts from fresh weights, and a mixture at layers has one base",
                where=f"{where}.slots",
                expected="from: base",
                do="let it branch from the base, or meet the others at outputs",
            )
        if mixture.shared is None and not expert.finished and _moves_the_rest(expert, by_name):
            raise RequestError(
                f"expert {name!r} is of kind {expert.kind} and differs from the base outside its feed-forward blocks",
                where=f"{where}.slots",
                expected="kind ffn, or lora with feed-forward targets",
                do="train it as kind ffn, or say what becomes of the rest: shared: base or shared: average",
            )
        if mixture.router.kind in ("ridge", "label") and not expert.corpus:
            raise RequestError(
                f"a gate of kind {mixture.router.kind} is fitted on each expert's data, and {name!r} names none",
                where=f"{where}.router.kind",
                do=f"give {name!r} a corpus, or use prompt or uniform",
            )
    for corpus in (mixture.tune.corpora or {}) if mixture.tune else ():
        if corpus not in corpora:
            raise RequestError(f"no corpus is called {corpus!r}", where=f"{where}.tune.corpora", expected=", ".join(corpora))
    learns = mixture.router.kind in ("label", "learned") or (mixture.tune is not None and mixture.tune.what == "gate")
    if len(distinct) == 1 and learns:
        raise RequestError(
            "all slots share one expert, so there is nothing that a gate could learn to tell apart",
            where=f"{where}.router.kind",
            found=mixture.router.kind,
            do="use uniform, or seat other experts too",
        )
    return mixture


_FEED_FORWARD = {"gate_proj", "up_proj", "down_proj", "c_fc", "fc1", "fc2", "fc_in", "fc_out"}


def _moves_the_rest(expert: Expert, by_name: dict[str, Expert]) -> bool:
    """Whether more than feed-forward blocks can differ from the base, by the recipe alone; files are compared later."""
    if expert.kind == "full" or (expert.from_ in by_name and by_name[expert.from_].kind == "full"):
        return True
    if expert.kind == "ffn":
        return False
    targets = expert.lora.targets if expert.lora else "all-linear"
    return isinstance(targets, str) or not set(targets) <= _FEED_FORWARD
