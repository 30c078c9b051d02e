"""Fitting a router on cached scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from coterie.errors import WorkError
from coterie.mixtures.outputs.cached_scores import held_out_documents, open_scored
from coterie.mixtures.seats import Seat, eligibility
from coterie.progress import say
from coterie.routing.fit import Scored, fit
from coterie.routing.output_routers import OutputRouter
from coterie.spec.json_types import Settings
from coterie.store import Artifact


def write(
    router: OutputRouter,
    spec: Settings,
    seats: Sequence[Seat],
    folder: Path,
    *,
    blocks: Sequence[Artifact],
    scores: Sequence[Sequence[Artifact]],
    label: str,
) -> None:
    """Fit, and write the router; see `coterie.mixtures.outputs.outputs_actions.fit_router`.

    Args:
        spec: of the action: ``router`` (its settings for the record), ``counts``, ``eligible``, ``seed``.
    """
    counts, seed, eligible = spec["counts"], spec["seed"], spec["eligible"]
    how = router.fitting
    assert how is not None
    module = router.build(len(seats), seats[0].vocab_size, seed)
    allowed = eligibility(eligible["rule"], [seat.name for seat in seats], eligible["dates"])
    share = None if how.tokens is None else how.tokens // len(blocks)
    data, held_out = _together([open_scored(b, s, allowed, share) for b, s in zip(blocks, scores, strict=True)], seed)
    counted = int(data.target_NT[:, 1:].sum())
    if counted == 0:
        raise WorkError(f"{label}: the valid split holds no token to fit on", do="raise split.valid of its corpora")
    try:
        trace = fit(module, data, held_out, torch.tensor(counts, dtype=torch.float32).log(), how, seed=seed)
    except FloatingPointError as error:
        raise WorkError(f"{label}: {error}", do="lower the router's learning_rate") from None
    best = min(range(len(trace)), key=lambda e: trace[e]["held"])
    gain = f"{trace[0]['held']:.4f} -> {trace[best]['held']:.4f}"
    say(f"  {label}: {gain} nats a token on held-out documents, epoch {best} of {len(trace) - 1}")
    save_file(module.state_dict(), folder / "router.safetensors")
    record = {"router": spec["router"], "counts": counts, "experts": len(seats), "tokens": counted, "trace": trace}
    (folder / "router.json").write_text(json.dumps(record, indent=1, sort_keys=True))


def _together(parts: Sequence[tuple[Scored, torch.Tensor, list[str]]], seed: int) -> tuple[Scored, torch.Tensor]:
    """All sets of blocks as one, and the tokens of documents kept for early stopping."""
    held_out = torch.cat(
        [held_out_documents(contents, seed)[document_NT] & (document_NT >= 0) for _, document_NT, contents in parts]
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
    return whole, held_out
