"""Mixtures at the outputs: score the experts, fit the router on the scores, put the parts together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from coterie.experts.expert_actions import score_expert
from coterie.mixtures.outputs.coadapt_action import adapted, coadapt
from coterie.mixtures.outputs.outputs_actions import assemble, fit_router, materialise, routed
from coterie.mixtures.outputs.outputs_place import OutputsSpec
from coterie.mixtures.seats import Member
from coterie.routing.output_routers import Uniform
from coterie.store import Artifact

if TYPE_CHECKING:
    from coterie.run.conductor import Conductor


def make(c: Conductor, mixture: OutputsSpec) -> Artifact:
    return assemble(
        c.store,
        mixture=mixture,
        members=members(c, mixture),
        router=router(c, mixture),
        tokenizer=c.tokenizer,
        label=f"mixture {mixture.name}",
    )


def scores(c: Conductor, mixture: OutputsSpec, blocks: Artifact) -> Artifact:
    """From the experts' cached scores: no expert runs."""
    artifact = c.mixtures[mixture.name]
    of_experts = [_scores(c, member, blocks) for member in members(c, mixture)]
    return routed(c.store, artifact, blocks, of_experts, label=f"scores of {mixture.name}")


def put(c: Conductor, mixture: OutputsSpec, folder: Path) -> Path:
    return materialise(c.mixtures[mixture.name], members(c, mixture), folder)


def experts(c: Conductor, mixture: OutputsSpec) -> list[str]:
    return [member.name for member in members(c, mixture)]


def seats(c: Conductor, mixture: OutputsSpec) -> list[tuple[str, str]]:
    digests = {slot: member.artifact.digest for member in members(c, mixture) for slot in member.slots}
    return [(slot, digests[slot]) for slot in mixture.slots]


def members(c: Conductor, mixture: OutputsSpec) -> list[Member]:
    """The distinct experts of a mixture with the number of their slots, in order of first use."""
    if mixture.adapt is not None:
        return adapted(adaptation(c, mixture), members(c, _start(c, mixture)))
    found: dict[str, Member] = {}
    for slot in mixture.slots:
        artifact = c.experts[slot]
        if artifact.digest in found:
            found[artifact.digest].slots.append(slot)
            continue
        expert = c.by_name[slot]
        found[artifact.digest] = Member(
            name=slot,
            artifact=artifact,
            base=c.origin(expert) if expert.kind == "lora" else None,
            window=expert.window,
            knowledge=c.knowledge(slot) if mixture.eligible == "strict" else None,
            slots=[slot],
        )
    return list(found.values())


def router(c: Conductor, mixture: OutputsSpec) -> Artifact | None:
    """The fitted router; None where nothing is learned."""
    if isinstance(mixture.router, Uniform):
        return None
    if mixture.adapt is not None:
        return adaptation(c, mixture).part("router", "routers")
    seated = members(c, mixture)
    data = c.data_of(mixture.slots)
    most = mixture.router.tokens and max(mixture.router.tokens // len(data), 1)
    blocks = [c.blocks(corpus, "valid", window, where, most) for corpus, window, where in data]
    return fit_router(
        c.store,
        mixture=mixture,
        members=seated,
        blocks=blocks,
        scores=[[_scores(c, member, b) for member in seated] for b in blocks],
        tokenizer=c.tokenizer,
        seed=c.recipe.seed,
        label=f"router of {mixture.name}",
    )


def adaptation(c: Conductor, mixture: OutputsSpec) -> Artifact:
    """Copies of the start's router and experts, trained on together."""
    start = _start(c, mixture)
    seated = members(c, start)
    slices = [c.by_name[member.name] for member in seated]
    return coadapt(
        c.store,
        mixture=mixture,
        members=seated,
        router=None if isinstance(mixture.router, Uniform) else router(c, start),
        blocks=[c.blocks(e.corpus, "train", e.window, e.where) for e in slices],
        valid=[c.blocks(e.corpus, "valid", e.window, e.where) for e in slices],
        seed=c.recipe.seed,
        label=f"co-adaptation {mixture.name}",
    )


def _start(c: Conductor, mixture: OutputsSpec) -> OutputsSpec:
    assert mixture.adapt is not None
    found = next(m for m in c.recipe.mixtures if m.name == mixture.adapt.start)
    assert isinstance(found, OutputsSpec)
    return found


def _scores(c: Conductor, member: Member, blocks: Artifact) -> Artifact:
    return score_expert(c.store, member.artifact, blocks, base=member.base, label=f"scores of {member.name}")
