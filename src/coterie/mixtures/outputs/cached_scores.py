"""Cached scores as tensors for the router: blocks, scores of each distinct expert, who may be used for which document; what
is fitted on them, and what is read of them.

Shapes: N blocks, T positions, U distinct experts, D documents (rows of documents.parquet).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from coterie.errors import WorkError
from coterie.mixtures.mixture_files import write_router
from coterie.mixtures.outputs.outputs_files import OutputsConfig, open_router
from coterie.mixtures.score_files import write_routed
from coterie.mixtures.seats import Seat, eligibility
from coterie.progress import say
from coterie.routing.eligibility import Eligibility
from coterie.routing.fit import Scored, fit, mix
from coterie.routing.output_routers import OutputRouter
from coterie.spec.json_types import Settings
from coterie.store import Artifact

HELD_OUT = 0.2
"""Share of the documents on which a router's fit is stopped early."""


def open_scored(
    blocks: Artifact, scores: Sequence[Artifact], eligibility: Eligibility, tokens: int | None = None
) -> tuple[Scored, Tensor, list[str]]:
    """One set of blocks with the scores of all experts.

    Args:
        tokens: read blocks from the front until they hold so many tokens.

    Returns:
        the tensors (tokens of documents that no expert may answer are not counted), the document of each token as a row
        number [N, T] (-1 padding), and the content hash of each document.
    """
    files = load_file(blocks.file("blocks.safetensors"))
    documents = pl.read_parquet(blocks.file("documents.parquet"), glob=False).sort("row")
    document_NT = files["document"].long()
    if tokens is not None:
        inside_N = (document_NT >= 0).sum(1).cumsum(0)
        N = int((inside_N < tokens).sum()) + 1
        files, document_NT = {name: tensor[:N] for name, tensor in files.items()}, document_NT[:N]
    N = len(document_NT)
    logp_UNT1 = torch.stack([load_file(s.file("scores.safetensors"))["logp"][:N] for s in scores])
    if logp_UNT1.shape[1:] != (N, document_NT.shape[1] - 1):
        raise WorkError(
            "scores do not belong to these blocks",
            where=str(scores[0].path),
            expected=f"{N} x {document_NT.shape[1] - 1}",
            found=" x ".join(map(str, logp_UNT1.shape[1:])),
        )
    times = [None if t is None else t.toordinal() for t in documents["time"]] if "time" in documents.columns else []
    if eligibility.rule == "all" or not times:
        eligible_NTU = torch.ones(N, 1, len(scores), dtype=torch.bool)
        answered_NT = torch.ones_like(document_NT, dtype=torch.bool)
    else:
        eligible_DU = eligibility.mask(times, none_is_error=False)
        answered_NT = eligible_DU.any(1)[document_NT] | (document_NT < 0)
        eligible_NTU = eligible_DU[document_NT] | ~answered_NT[..., None] | (document_NT < 0)[..., None]
    target_NT = files["target"].bool() & answered_NT
    return (
        Scored(files["ids"], files["position"].long(), target_NT, logp_UNT1, eligible_NTU),
        document_NT,
        list(documents["content"]),
    )


def held_out_documents(contents: Sequence[str], seed: int) -> Tensor:
    """Which documents are kept for early stopping: by content, so that neither order nor company matters. [D] bool."""
    hashes = [hashlib.sha256(f"{seed}:{c}".encode()).digest()[:8] for c in contents]
    return torch.tensor([int.from_bytes(h, "big") < HELD_OUT * 2**64 for h in hashes], dtype=torch.bool)


@dataclass(frozen=True)
class Routed:
    """A mixture's losses on scored blocks."""

    nll: Float[np.ndarray, "N T-1"]
    """Nats, at each token that something predicts; NaN where no expert may answer at the document's date; 0 elsewhere."""
    weight: Float[np.ndarray, "N T-1 U"]
    """Weights over distinct experts for predicting each token."""


@torch.no_grad()
def routed_nll(mixture: Artifact | Path, blocks: Artifact, scores: Sequence[Artifact], *, chunk: int = 32) -> Routed:
    """What `OutputsMixture.nll` would say, from cached scores: no expert runs.

    Args:
        mixture: a mixture artifact or directory.
        scores: of each distinct expert on the blocks, in the order of the mixture's ``experts``.
        chunk: blocks at a time.
    """
    folder = mixture if isinstance(mixture, Path) else mixture.path
    config = OutputsConfig.from_pretrained(folder)
    assert len(scores) == len(config.experts)
    router, policy, log_count_U = open_router(folder, config), config.policy, torch.tensor(config.counts).float().log()
    data, document_NT, _ = open_scored(blocks, scores, config.eligibility)
    files = load_file(blocks.file("blocks.safetensors"))
    answered_NT = data.target_NT | ~files["target"].bool()
    nll, weight = [], []
    for rows in torch.arange(len(data)).split(chunk):
        part = data[rows]
        logits_BTU, _ = router(part.ids_NT, part.position_NT, part.eligible_NTU, part.evidence_NTU)
        logw_BTU = policy(logits_BTU, log_count_U, part.eligible_NTU)[:, :-1]
        nll_BT1 = -mix(logw_BTU, part.predicted_NT1U)
        counted = (part.position_NT[:, 1:] > 0) & (document_NT[rows][:, 1:] >= 0)
        nll_BT1 = torch.where(counted, nll_BT1, 0.0)
        nll.append(nll_BT1.masked_fill(~answered_NT[rows][:, 1:], torch.nan).numpy())
        weight.append(logw_BTU.exp().numpy())
    return Routed(np.concatenate(nll), np.concatenate(weight))


def write_scores(mixture: Artifact, blocks: Artifact, scores: Sequence[Artifact], folder: Path) -> None:
    """Write a mixture's scores; see `coterie.mixtures.outputs.outputs_place.routed`."""
    result = routed_nll(mixture, blocks, scores)
    write_routed(blocks, -np.nan_to_num(result.nll), ~np.isnan(result.nll), result.weight, folder)


def fit_router(
    router: OutputRouter,
    spec: Settings,
    seats: Sequence[Seat],
    folder: Path,
    *,
    blocks: Sequence[Artifact],
    scores: Sequence[Sequence[Artifact]],
    label: str,
) -> None:
    """Fit, and write the router; see `coterie.mixtures.outputs.outputs_place.fit_router`.

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
    write_router(module.state_dict(), folder)
    record = {"router": spec["router"], "counts": counts, "experts": len(seats), "tokens": counted, "trace": trace}
    (folder / "router.json").write_text(json.dumps(record, indent=1, sort_keys=True))


def _together(parts: Sequence[tuple[Scored, Tensor, list[str]]], seed: int) -> tuple[Scored, Tensor]:
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
