"""Mixtures inside the layers: merge the experts, fit or train the gates, train further, put the parts together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.experts.train_settings import Train
from coterie.mixtures.layers import layers_actions as verbs
from coterie.mixtures.layers.layers_actions import Cost, Model, Seat
from coterie.mixtures.layers.layers_place import LayersSpec
from coterie.store import Artifact

if TYPE_CHECKING:
    from coterie.run.conductor import Conductor


def make(c: Conductor, mixture: LayersSpec) -> Artifact:
    it = model(c, mixture)
    costs: list[Cost | None] = []
    if mixture.shared is not None:
        for u, seat in enumerate(_seats(c, mixture)):
            if not c.by_name[seat.name].corpus:
                costs.append(None)  # made elsewhere, and no text is named to measure it on
                continue
            blocks = _data(c, seat.name, "valid", None)
            alone = verbs.score(c.store, it, blocks, only=u, label=f"{seat.name} alone in {mixture.name}")
            costs.append(Cost(c.scores(seat.name, blocks), alone, blocks))
    return verbs.assemble(c.store, it, costs=costs, label=f"mixture {mixture.name}")


def scores(c: Conductor, mixture: LayersSpec, blocks: Artifact) -> Artifact:
    return verbs.score(c.store, model(c, mixture), blocks, label=f"scores of {mixture.name}")


def put(c: Conductor, mixture: LayersSpec, folder: Path) -> Path:
    return verbs.materialise(c.mixtures[mixture.name], model(c, mixture), folder)


def experts(c: Conductor, mixture: LayersSpec) -> list[str]:
    return [seat.name for seat in _seats(c, mixture)]


def seats(c: Conductor, mixture: LayersSpec) -> list[tuple[str, str]]:
    return [(slot, c.experts[slot].digest) for slot in mixture.slots]


def model(c: Conductor, mixture: LayersSpec) -> Model:
    """The finished model: merged, gated, tuned."""
    seated, name, router = _seats(c, mixture), mixture.name, mixture.router
    base = c.origin(c.by_name[seated[0].name])
    merged = verbs.merge(c.store, base=base, seats=seated, shared=mixture.shared, label=f"experts of {name}, merged")
    said = {
        "names": list(mixture.slots),
        "seats": verbs.seat_order(mixture, seated),
        "digests": [seat.artifact.digest for seat in seated],
        "gate": {"kind": router.kind, "top_k": router.top_k, "bias": router.bias},
    }
    it = Model(said, merged, None, base, c.tokenizer)
    held = []
    if router.kind == "ridge":
        most = router.tokens and max(router.tokens // len(seated), 1)
        held = [_data(c, seat.name, "valid", most) for seat in seated]
    gates = verbs.fit(c.store, it, mixture=mixture, seats=seated, blocks=held, seed=c.recipe.seed, label=f"gates of {name}")
    it = replace(it, gates=gates)
    if router.kind == "label":
        train = Train(
            tokens=router.tokens, learning_rate=router.learning_rate, batch_size=router.batch_size, weight_decay=0.0
        )
        gates = verbs.tune(
            c.store,
            it,
            what="gate",
            by_label=True,
            router=router,
            blocks=[_data(c, s.name, "valid", None) for s in seated],
            weights=[1.0] * len(seated),
            train=train,
            seed=c.recipe.seed,
            label=f"gates of {name}, by label",
        )
        it = replace(it, gates=gates)
    return _tuned(c, mixture, it) if mixture.tune is not None else it


def _tuned(c: Conductor, mixture: LayersSpec, it: Model) -> Model:
    tune = mixture.tune
    assert tune is not None
    if tune.corpora is not None:
        blocks, weights = [c.blocks(name, "train") for name in tune.corpora], list(tune.corpora.values())
    else:
        distinct = {b.digest: b for b in (_data(c, s.name, "train", None) for s in _seats(c, mixture))}
        blocks, weights = list(distinct.values()), [1.0] * len(distinct)
    made = verbs.tune(
        c.store,
        it,
        what=tune.what,
        by_label=False,
        router=mixture.router,
        blocks=blocks,
        weights=weights,
        train=tune.train.model_copy(update={"tokens": tune.tokens}),
        seed=c.recipe.seed,
        label=f"{mixture.name}, tuned ({tune.what})",
    )
    return replace(it, gates=made) if tune.what == "gate" else replace(it, gates=made, experts=made)


def _seats(c: Conductor, mixture: LayersSpec) -> list[Seat]:
    """The distinct experts, in order of first use."""
    found: dict[str, Seat] = {}
    for slot in mixture.slots:
        artifact = c.experts[slot]
        if artifact.digest in found:
            found[artifact.digest].slots.append(slot)
        else:
            found[artifact.digest] = Seat(slot, artifact)
    return list(found.values())


def _data(c: Conductor, name: str, split: str, tokens: int | None) -> Artifact:
    expert = c.by_name[name]
    return c.blocks(expert.corpus, split, expert.window, expert.where, tokens)
