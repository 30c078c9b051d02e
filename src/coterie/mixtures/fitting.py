"""The verb that fits a router on cached scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from coterie.errors import WorkError
from coterie.mixtures.members import Member, eligibility, rule
from coterie.mixtures.scored import held_documents, open_scored
from coterie.progress import say
from coterie.recipe import Mixture
from coterie.routing import Scored, Settings, build, fit
from coterie.store import Action, Artifact, Store

LATER = {"top_k", "top_p"}
"""Settings of a router that its fit does not depend on."""


def fit_router(
    store: Store,
    *,
    mixture: Mixture,
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
    fitted = settings.get("fit", True)
    inputs = {"tokenizer": tokenizer.digest}
    for b, (block, row) in enumerate(zip(blocks, scores, strict=True)):
        inputs[f"blocks.{b}"] = block.digest
        inputs |= {f"scores.{b}.{u}": score.content("scores.safetensors") for u, score in enumerate(row)}
    action = Action(
        "routers",
        spec={"router": settings, "counts": counts, "seed": seed, "eligible": _eligible(mixture, members)},
        inputs=inputs if fitted else {},
        libraries=("torch",),
        numerics="cpu-fp32",
    )

    def build_router(folder: Path) -> dict[str, Any]:
        router = build(settings, len(members), members[0].vocab_size, seed)
        record: dict[str, Any] = {"router": settings, "counts": counts, "experts": len(members)}
        if fitted and any(True for _ in router.parameters()):
            spec = _eligible(mixture, members)
            allowed = eligibility(spec["rule"], [m.name for m in members], spec["dates"])
            share = None if settings["tokens"] is None else settings["tokens"] // len(blocks)
            data, held = _together([open_scored(b, s, allowed, share) for b, s in zip(blocks, scores, strict=True)], seed)
            counted = int(data.target_NT[:, 1:].sum())
            if counted == 0:
                raise WorkError(f"{label}: the valid split holds no token to fit on", do="raise split.valid of its corpora")
            chosen = {f.name: settings[f.name] for f in fields(Settings)}
            log_count_U = torch.tensor(counts, dtype=torch.float32).log()
            try:
                trace = fit(router, data, held, log_count_U, Settings(**chosen), seed=seed)
            except FloatingPointError as error:
                raise WorkError(f"{label}: {error}", do="lower the router's learning_rate") from None
            record |= {"tokens": counted, "trace": trace}
            best = min(range(len(trace)), key=lambda e: trace[e]["held"])
            gain = f"{trace[0]['held']:.4f} -> {trace[best]['held']:.4f}"
            say(f"  {label}: {gain} nats a token on held-out documents, epoch {best} of {len(trace) - 1}")
        save_file(router.state_dict(), folder / "router.safetensors")
        (folder / "router.json").write_text(json.dumps(record, indent=1, sort_keys=True))
        return {}

    return store.make(action, build_router, label=label)


def _eligible(mixture: Mixture, members: Sequence[Member]) -> dict[str, Any]:
    """The rule and the dates it goes by; nothing where every date may use every expert."""
    if mixture.eligible == "all":
        return {"rule": {"rule": "all"}, "dates": [{} for _ in members]}
    return {"rule": rule(mixture, members), "dates": [m.dates for m in members]}


def _together(parts: Sequence[tuple[Scored, torch.Tensor, list[str]]], seed: int) -> tuple[Scored, torch.Tensor]:
    """All sets of blocks as one, and the tokens of documents kept for early stopping."""
    held = torch.cat(
        [held_documents(contents, seed)[document_NT] & (document_NT >= 0) for _, document_NT, contents in parts]
    )
    data = [part for part, _, _ in parts]
    T = max(part.eligible_NTU.shape[1] for part in data)
    whole = Scored(
        torch.cat([p.ids_NT for p in data]),
        torch.cat([p.position_NT for p in data]),
        torch.cat([p.target_NT for p in data]),
        torch.cat([p.logp_UNT1 for p in data], dim=1),
        torch.cat([p.eligible_NTU.expand(-1, T, -1) for p in data]),
    )
    return whole, held
