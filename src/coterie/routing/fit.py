"""Fitting a router on cached scores: no expert runs and no vocabulary axis exists.

Plain torch, because a step takes about a millisecond and a trainer's bookkeeping takes more. The loss is the mixture's own:
``-logsumexp_u(log w_u + log P_u)`` over counted tokens, under the dense policy; top-k and top-p are applied when the router
is used.

Shapes: N blocks, B of them in a batch, T positions, U distinct experts. ``logp_UNT1[u, n, t]`` is log P_u(ids[n, t+1]).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from coterie.routing.fit_settings import FitSettings
from coterie.routing.gates import Gated, balance
from coterie.routing.logits_to_weights import log_softmax
from coterie.routing.routers import RouterModule


@dataclass(frozen=True)
class Scored:
    """Blocks of tokens with the scores of each distinct expert on them."""

    ids_NT: Int[Tensor, "N T"]
    position_NT: Int[Tensor, "N T"]
    target_NT: Bool[Tensor, "N T"]
    """Tokens that are counted."""
    logp_UNT1: Float[Tensor, "U N T-1"]
    eligible_NTU: Bool[Tensor, "N _ U"]

    def __getitem__(self, rows: Any) -> Scored:
        return Scored(
            self.ids_NT[rows], self.position_NT[rows], self.target_NT[rows], self.logp_UNT1[:, rows], self.eligible_NTU[rows]
        )

    def __len__(self) -> int:
        return len(self.ids_NT)

    @property
    def evidence_NTU(self) -> Float[Tensor, "N T U"]:
        """log P_u(x_t); 0 at a document's first token, as in the scores."""
        return torch.nn.functional.pad(self.logp_UNT1, (1, 0)).movedim(0, -1)

    @property
    def predicted_NT1U(self) -> Float[Tensor, "N T-1 U"]:
        """log P_u(x_{t+1}) of eligible experts, 0 for the others."""
        logp_NT1U = self.logp_UNT1.movedim(0, -1)
        return torch.where(self.eligible_NTU[:, : logp_NT1U.shape[1]], logp_NT1U, 0.0)


def mix(logw_BTU: Tensor, logp_BTU: Tensor) -> Tensor:
    """``logsumexp_u(log w_u + log P_u)``; an expert of weight 0 counts for nothing whatever its log P is."""
    return torch.where(logw_BTU.isneginf(), -torch.inf, logw_BTU + logp_BTU).logsumexp(-1)


def objective(router: RouterModule, data: Scored, log_count_U: Tensor, settings: FitSettings) -> tuple[Tensor, Tensor]:
    """Sum over counted tokens of nll and of the auxiliary terms (balance counts once a token)."""
    logits_BTU, _ = router(data.ids_NT, data.position_NT, data.eligible_NTU, data.evidence_NTU)
    logw_BTU = log_softmax(logits_BTU, log_count_U, data.eligible_NTU, settings.temperature)[:, :-1]
    counted = data.target_NT[:, 1:]
    nll = -mix(logw_BTU, data.predicted_NT1U)[counted].sum()
    aux = torch.zeros(())
    weight_MU = logw_BTU.exp()[counted]
    if settings.entropy:
        finite_MU = logw_BTU[counted].masked_fill(weight_MU == 0, 0)  # 0 log 0 is 0, and so is its gradient
        aux = aux - settings.entropy * (weight_MU * finite_MU).sum()
    if settings.balance:
        experts_U = torch.arange(logw_BTU.shape[-1], device=logw_BTU.device)
        even = balance(Gated(logw_BTU, logw_BTU.exp()), experts_U, len(experts_U), counted)
        aux = aux + settings.balance * len(weight_MU) * even
    if settings.z:
        logits_BTU = logits_BTU.masked_fill(~data.eligible_NTU, -torch.inf)[:, :-1]
        aux = aux + settings.z * logits_BTU.logsumexp(-1)[counted].square().sum()
    return nll, aux


def fit(
    router: RouterModule,
    data: Scored,
    held_out_NT: Bool[Tensor, "N T"],
    log_count_U: Float[Tensor, " U"],
    settings: FitSettings,
    *,
    seed: int,
) -> list[dict[str, float]]:
    """Train ``router`` in place; its best state on the held-out tokens is restored.

    Args:
        held_out_NT: tokens kept for early stopping; if none or all counted ones are, all are used for both.

    Returns:
        for each epoch, 0 (before any step) included: ``train`` and ``held`` nll in nats a token.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    counted_NT = data.target_NT.bool().clone()
    counted_NT[:, 0] = False
    held_out_NT = held_out_NT & counted_NT
    train_NT = counted_NT & ~held_out_NT
    if not held_out_NT.any() or not train_NT.any():
        held_out_NT = train_NT = counted_NT
    train = replace(data, target_NT=train_NT)[train_NT.any(1)]
    held_out = replace(data, target_NT=held_out_NT)[held_out_NT.any(1)]
    decayed = [p for p in router.parameters() if p.ndim > 1]
    plain = [p for p in router.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]

    def loss(of: Scored) -> float:
        with torch.no_grad():
            batches = torch.arange(len(of)).split(settings.batch_size)
            return (
                sum(objective(router, of[b], log_count_U, settings)[0].item() for b in batches) / of.target_NT.sum().item()
            )

    trace = [{"train": loss(train), "held": loss(held_out)}]
    best, stale = copy.deepcopy(router.state_dict()), 0
    if not decayed and not plain:
        return trace
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
    for epoch in range(settings.epochs):
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
        total = 0.0
        for rows in torch.randperm(len(train), generator=generator).split(settings.batch_size):
            batch = train[rows]
            nll, aux = objective(router, batch, log_count_U, settings)
            optimizer.zero_grad(set_to_none=True)
            ((nll + aux) / batch.target_NT.sum()).backward()
            optimizer.step()
            total += nll.item()
        trace.append({"train": total / train.target_NT.sum().item(), "held": loss(held_out)})
        if not all(map(torch.isfinite, torch.tensor([*trace[-1].values()]))):
            raise FloatingPointError(f"the router's loss is not finite in epoch {epoch + 1}")
        if trace[-1]["held"] < min(t["held"] for t in trace[:-1]):
            best, stale = copy.deepcopy(router.state_dict()), 0
        else:
            stale += 1
            if stale >= settings.patience:
                break
    router.load_state_dict(best)
    return trace
