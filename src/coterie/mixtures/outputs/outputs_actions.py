"""The verbs: fit a router, assemble a mixture, give its scores, put it where a person looks for it.

Each states what decides its result (the action); only if the store lacks that does it import torch and transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coterie.mixtures.outputs.outputs_place import OutputsSpec
from coterie.mixtures.seats import Member, rule, slot_order
from coterie.progress import say
from coterie.store import Action, Artifact, Store, link_tree

LATER = {"top_k", "top_p"}
"""Settings of a router that its fit does not depend on."""


def fit_router(
    store: Store,
    *,
    mixture: OutputsSpec,
    members: Sequence[Member],
    blocks: Sequence[Artifact],
    scores: Sequence[Sequence[Artifact]],
    tokenizer: Artifact,
    seed: int,
    label: str,
) -> Artifact:
    """Fit a mixture's router.

    Args:
        members: its distinct experts.
        blocks: held-out data (the valid split).
        scores: of each member on each of ``blocks``: ``scores[blocks][member]``.

    Returns:
        a ``routers`` artifact: ``router.safetensors``, and ``router.json`` with the settings and the losses by epoch.

    Raises:
        RequestError: eligibility needs a date that a member does not have.
        WorkError: the loss is not finite, or there is nothing to fit on.
    """
    settings = mixture.router.model_dump(mode="json", exclude=LATER)
    counts = [len(member.slots) for member in members]
    shared = [f"{m.name!r} ({len(m.slots)} slots)" for m in members if len(m.slots) > 1]
    if shared and not store.dry:
        say(f"  {label}: slots of one expert cannot be told apart and share its weight: {', '.join(shared)}")
    eligible = eligible_of(mixture, members)
    inputs = {"tokenizer": tokenizer.digest}
    for b, (block, row) in enumerate(zip(blocks, scores, strict=True)):
        inputs[f"blocks.{b}"] = block.digest
        inputs |= {f"scores.{b}.{u}": score.content("scores.safetensors") for u, score in enumerate(row)}
    action = Action(
        "routers",
        spec={"router": settings, "counts": counts, "seed": seed, "eligible": eligible},
        inputs=inputs if settings.get("fit", True) else {},
        libraries=("torch",),
        numerics="cpu-fp32",
    )

    def build(folder: Path) -> None:
        from coterie.mixtures.outputs.router_fits import write

        write(settings, members, eligible, blocks, scores, seed, label, folder)

    return store.make(action, build, label=label)


def eligible_of(mixture: OutputsSpec, members: Sequence[Member]) -> dict[str, Any]:
    """The rule and the dates it goes by; nothing where every date may use every expert."""
    if mixture.eligible in (None, "all"):
        return {"rule": {"rule": "all"}, "dates": [{} for _ in members]}
    return {"rule": rule(mixture, members), "dates": [m.dates for m in members]}


def assemble(
    store: Store,
    *,
    mixture: OutputsSpec,
    members: Sequence[Member],
    router: Artifact | None,
    tokenizer: Artifact,
    label: str,
) -> Artifact:
    """A mixture of finished experts.

    Args:
        members: its distinct experts, in order.
        router: the fitted router; None for `uniform`.
        tokenizer: the one that every expert uses.

    Raises:
        RequestError: experts with different tokenizers or vocabularies; an unknown date that the rule of eligibility needs.
    """
    experts = [
        {
            "name": m.name,
            "dir": f"experts/{m.name}",
            "base": f"experts/base-{m.base.digest[:12]}" if m.base else None,
            "digest": m.artifact.digest,
            **m.dates,
        }
        for m in members
    ]
    seats = [{"name": name, "expert": u} for name, u in zip(mixture.slots, slot_order(mixture, members), strict=True)]
    said: dict[str, Any] = {
        "slots": seats,
        "experts": experts,
        "router": mixture.router.model_dump(mode="json"),
        "eligible": rule(mixture, members),
    }
    inputs = {f"experts.{i}": m.artifact.digest for i, m in enumerate(members)} | {"tokenizer": tokenizer.digest}
    inputs |= {f"bases.{i}": m.base.digest for i, m in enumerate(members) if m.base}
    inputs |= {"router": router.digest} if router else {}

    def build(folder: Path) -> None:
        from coterie.mixtures.outputs.outputs_files import write

        write(said, members, router, tokenizer, folder)

    return store.make(Action("mixtures", said, inputs, libraries=("transformers",)), build, label=label)


def routed(store: Store, mixture: Artifact, blocks: Artifact, scores: Sequence[Artifact], *, label: str) -> Artifact:
    """A mixture's log-probabilities on scored blocks; no expert runs.

    Args:
        scores: of each distinct expert on ``blocks``, in the mixture's order.

    Returns:
        artifact ``scores``: ``logp`` [N, T-1] and ``answered`` [N, T-1] (0 where no expert may answer at the document's
        date). Its facts hold, over counted tokens: ``tokens``, ``nll``, ``utilization`` (mean weight of each distinct
        expert), ``entropy`` (nats), ``confidence`` (mean largest weight), ``by_position`` (mean weights at each
        position) and ``positions`` (tokens at each position).
    """
    action = Action(
        "scores",
        spec={"of": "mixture"},
        inputs={
            "mixture": mixture.digest,
            "blocks": blocks.content("blocks.safetensors", "documents.parquet"),
            **{f"scores.{u}": s.content("scores.safetensors") for u, s in enumerate(scores)},
        },
        libraries=("torch",),
        numerics="cpu-fp32",
    )

    def build(folder: Path) -> None:
        from coterie.mixtures.score_files import write

        write(mixture, blocks, scores, folder)

    return store.make(action, build, label=label)


def materialise(mixture: Artifact, members: Sequence[Member], target: Path) -> Path:
    """A mixture directory at ``target`` that opens by itself: its files and every expert's, linked from the store."""
    entries = json.loads(mixture.file("config.json").read_text())["experts"]
    parts = {entry["dir"]: member.artifact for entry, member in zip(entries, members, strict=True)}
    parts |= {e["base"]: m.base for e, m in zip(entries, members, strict=True) if m.base is not None}
    return link_tree(mixture, target, parts)
