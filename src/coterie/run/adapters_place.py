"""Mixtures of LoRA experts: fit or train the gates, put the parts together; or train all of it together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from coterie.mixtures.adapters import adapters_actions as verbs
from coterie.mixtures.adapters.adapters_actions import Seat
from coterie.mixtures.adapters.adapters_place import AdaptersSpec
from coterie.models.lora_settings import Lora
from coterie.store import Artifact

if TYPE_CHECKING:
    from coterie.run.conductor import Conductor


def make(c: Conductor, mixture: AdaptersSpec) -> Artifact:
    if mixture.joint is not None:
        return verbs.train_joint(
            c.store,
            mixture=mixture,
            base=c.base,
            blocks=[c.blocks(name, "train") for name in mixture.joint.corpora],
            valid={name: c.blocks(name, "valid") for name in mixture.joint.corpora},
            tokenizer=c.tokenizer,
            seed=c.recipe.seed,
            label=f"mixture {mixture.name}",
        )
    return verbs.assemble(
        c.store,
        mixture=mixture,
        seats=_seats(c, mixture),
        base=base(c, mixture),
        router=router(c, mixture),
        tokenizer=c.tokenizer,
        label=f"mixture {mixture.name}",
    )


def scores(c: Conductor, mixture: AdaptersSpec, blocks: Artifact) -> Artifact:
    artifact = c.mixtures[mixture.name]
    label = f"scores of {mixture.name}"
    return verbs.scores(c.store, artifact, _seats(c, mixture), base(c, mixture), blocks, label=label)


def put(c: Conductor, mixture: AdaptersSpec, folder: Path) -> Path:
    return verbs.materialise(c.mixtures[mixture.name], _seats(c, mixture), base(c, mixture), folder)


def experts(c: Conductor, mixture: AdaptersSpec) -> list[str]:
    return list(mixture.names) if mixture.joint else [seat.name for seat in _seats(c, mixture)]


def seats(c: Conductor, mixture: AdaptersSpec) -> list[tuple[str, str]]:
    if mixture.joint is not None:
        return verbs.inside(c.mixtures[mixture.name])
    digests = {slot: seat.artifact.digest for seat in _seats(c, mixture) for slot in seat.slots}
    return [(slot, digests[slot]) for slot in mixture.slots]


def base(c: Conductor, mixture: AdaptersSpec) -> Artifact:
    """What all its experts rest on."""
    return c.base if mixture.joint else c.origin(c.by_name[mixture.slots[0]])


def _seats(c: Conductor, mixture: AdaptersSpec) -> list[Seat]:
    """The distinct experts, in order of first use; none where the mixture holds its own."""
    found: dict[str, Seat] = {}
    for slot in mixture.slots:
        artifact = c.experts[slot]
        if artifact.digest in found:
            found[artifact.digest].slots.append(slot)
        else:
            expert = c.by_name[slot]
            said = artifact.content("adapter_config.json") if expert.adapter else (expert.lora or Lora()).targets
            found[artifact.digest] = Seat(slot, artifact, [slot], said)
    return list(found.values())


def router(c: Conductor, mixture: AdaptersSpec) -> Artifact | None:
    """The fitted gates; None where nothing is fitted."""
    seated, rest, label = _seats(c, mixture), base(c, mixture), f"router of {mixture.name}"
    if mixture.router.kind == "ridge":
        blocks = [_valid(c, seat.name, mixture.router.tokens) for seat in seated]
        return verbs.fit_ridge(c.store, mixture=mixture, seats=seated, base=rest, blocks=blocks, label=label)
    if mixture.router.kind == "learned":
        distinct = {b.digest: b for b in (_valid(c, seat.name, None) for seat in seated)}
        return verbs.fit_learned(
            c.store,
            mixture=mixture,
            seats=seated,
            base=rest,
            blocks=list(distinct.values()),
            seed=c.recipe.seed,
            label=label,
        )
    return None


def _valid(c: Conductor, name: str, tokens: int | None) -> Artifact:
    expert = c.by_name[name]
    return c.blocks(expert.corpus, "valid", expert.window, expert.where, tokens)
