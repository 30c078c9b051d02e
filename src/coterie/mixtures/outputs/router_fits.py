"""Fitting a router on cached scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from coterie.errors import WorkError
from coterie.mixtures.outputs.cached_scores import held_documents, open_scored
from coterie.mixtures.seats import Member, eligibility
from coterie.progress import say
from coterie.routing.fit import Scored, Settings, fit
from coterie.routing.routers import build
from coterie.store import Artifact


def write(
    settings: dict[str, Any],
    members: Sequence[Member],
    eligible: dict[str, Any],
    blocks: Sequence[Artifact],
    scores: Sequence[Sequence[Artifact]],
    seed: int,
    label: str,
    folder: Path,
) -> None:
    """Fit, and write the router; see `coterie.mixtures.fit_router`.

    Args:
        settings: of the recipe's router.
        eligible: the rule, and the dates that it goes by.
    """
    counts = [len(member.slots) for member in members]
    router = build(settings, len(members), members[0].vocab_size, seed)
    record: dict[str, Any] = {"router": settings, "counts": counts, "experts": len(members)}
    if settings.get("fit", True) and any(True for _ in router.parameters()):
        allowed = eligibility(eligible["rule"], [m.name for m in members], eligible["dates"])
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
