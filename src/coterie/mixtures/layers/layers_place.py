"""At the layers: the experts' feed-forward blocks are merged into one model, its gates fitted or trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import SerializeAsAny, model_validator

from coterie.errors import RequestError
from coterie.experts.train_settings import Train
from coterie.mixtures.layers import layers_actions
from coterie.mixtures.layers.layer_gates import ClosedFormGate, LayerGate, Uniform
from coterie.mixtures.layers.merged_model import Cost, MergedModel, MergedSettings, Tuning
from coterie.mixtures.place import Making, Neighbours, Place, known
from coterie.mixtures.seats import slot_order
from coterie.spec.settings import Count, Shares, Spec

if TYPE_CHECKING:
    from coterie.experts.expert_settings import Expert
    from coterie.store import Artifact


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


class LayersPlace(Place):
    """Slots over experts whose feed-forward blocks one gate a layer mixes."""

    at: Literal["layers"] = "layers"
    """Where experts meet: `layers` merges their feed-forward blocks into one mixture-of-experts model."""
    router: SerializeAsAny[LayerGate] = Uniform()
    """Who decides; a kind's name alone takes its defaults."""
    shared: Literal["base", "average"] | None = None
    """What becomes of attention, norms and embeddings where experts differ in them: the base's, or the experts' mean. Needed
    for experts of kind `full` and adapters of attention; what it costs is measured. Others merge exactly."""
    tune: Tune | None = None
    """Train the merged model further."""

    @model_validator(mode="after")
    def _settings_apply(self) -> LayersPlace:
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

    # checks ---------------------------------------------------------------------------------------------------------------

    def checked(self, among: Neighbours, where: str) -> Self:
        """Experts of one base, a rule for what is shared where they differ in it, and something that a gate can learn."""
        top_k, distinct = self.router.slots_kept, list(dict.fromkeys(self.slots))
        if top_k is not None and top_k > len(self.slots):
            raise RequestError(
                "top_k is above the number of slots",
                where=f"{where}.router.top_k",
                expected=f"at most {len(self.slots)}",
                found=str(top_k),
            )
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

    # making ---------------------------------------------------------------------------------------------------------------

    def make(self, run: Making) -> Artifact:
        model = self.model(run)
        costs: list[Cost | None] = []
        for u, seat in enumerate(run.seats(self.slots)) if self.shared is not None else ():
            if not run.has_data(seat.name):
                costs.append(None)  # made elsewhere, and no text is named to measure it on
                continue
            blocks = run.data(seat.name, "valid")
            label = f"{seat.name} alone in {self.name}"
            alone = layers_actions.score(run.store, model, blocks, only=u, label=label)
            costs.append(Cost(run.score(seat, blocks), alone, blocks))
        return layers_actions.assemble(run.store, model, costs=costs, label=f"mixture {self.name}")

    def scores(self, run: Making, blocks: Artifact) -> Artifact:
        return layers_actions.score(run.store, self.model(run), blocks, label=run.scores_label(self.name, blocks))

    def put(self, run: Making, folder: Path) -> Path:
        return layers_actions.materialise(run.made(self), self.model(run), folder)

    def model(self, run: Making) -> MergedModel:
        """The finished model: merged, gated, tuned."""
        seated, gate = run.seats(self.slots), self.router
        base = run.origin(seated[0].name)
        label = f"experts of {self.name}, merged"
        merged = layers_actions.merge(run.store, base=base, seats=seated, shared=self.shared, label=label)
        settings: MergedSettings = {
            "names": list(self.slots),
            "seats": slot_order(self.slots, seated),
            "digests": [seat.artifact.digest for seat in seated],
            "gate": {"kind": gate.kind, "top_k": gate.slots_kept, "bias": gate.has_bias},
        }
        model = MergedModel(settings, merged, None, base, run.tokenizer)
        blocks = []
        if isinstance(gate, ClosedFormGate) and gate.example_prompts is None:
            most = gate.most_tokens and max(gate.most_tokens // len(seated), 1)
            blocks = [run.data(seat.name, "valid", most) for seat in seated]
        gates = layers_actions.fit(
            run.store, model, gate=gate, seats=seated, blocks=blocks, seed=run.seed, label=f"gates of {self.name}"
        )
        model = replace(model, gates=gates)
        if gate.label_training is not None:
            by_label = Tuning(
                what="gate",
                by_label=True,
                losses=gate.auxiliary,
                blocks=[run.data(seat.name, "valid") for seat in seated],
                weights=[1.0] * len(seated),
                train=gate.label_training,
                seed=run.seed,
                label=f"gates of {self.name}, by label",
            )
            model = replace(model, gates=layers_actions.tune(run.store, model, by_label))
        return self._tuned(run, model) if self.tune is not None else model

    def _tuned(self, run: Making, model: MergedModel) -> MergedModel:
        tune = self.tune
        assert tune is not None
        if tune.corpora is not None:
            blocks, weights = [run.blocks(name, "train") for name in tune.corpora], list(tune.corpora.values())
        else:
            distinct = {b.digest: b for b in (run.data(seat.name, "train") for seat in run.seats(self.slots))}
            blocks, weights = list(distinct.values()), [1.0] * len(distinct)
        tuning = Tuning(
            what=tune.what,
            losses=self.router.auxiliary,
            blocks=blocks,
            weights=weights,
            train=tune.train.model_copy(update={"tokens": tune.tokens}),
            seed=run.seed,
            label=f"{self.name}, tuned ({tune.what})",
        )
        made = layers_actions.tune(run.store, model, tuning)
        return replace(model, gates=made) if tune.what == "gate" else replace(model, gates=made, experts=made)


_FEED_FORWARD = {"gate_proj", "up_proj", "down_proj", "c_fc", "fc1", "fc2", "fc_in", "fc_out"}


def _moves_the_rest(expert: Expert, by_name: Mapping[str, Expert]) -> bool:
    """Whether more than feed-forward blocks can differ from the base, by the recipe alone; files are compared later."""
    if expert.kind == "full" or (expert.from_ in by_name and by_name[expert.from_].kind == "full"):
        return True
    if expert.kind == "ffn":
        return False
    targets = expert.lora.targets if expert.lora else "all-linear"
    return isinstance(targets, str) or not set(targets) <= _FEED_FORWARD
