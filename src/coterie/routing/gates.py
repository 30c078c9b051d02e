"""Gates inside a model: linear maps from hidden states to logits over slots, their closed forms and their losses.

A gate follows the semantics of standard mixture-of-experts checkpoints, because it is exported to them: softmax over all
slots in fp32, the `top_k` largest, divided by their sum; and only then are the weights of slots that share an expert summed.
Its gradient is that of the softmax over all slots, with the divisor held constant: dividing a single kept weight by itself
would leave none, and a gate of ``top_k: 1`` would never learn.

Closed forms keep running sums and solve once: adding data or an expert adds to the sums, so the result is the one of fitting
everything at once, in whatever order and however it was divided.

Shapes: N tokens, H hidden, S slots, U experts, K kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class Gated(NamedTuple):
    """What a gate said of some tokens."""

    logits_NS: Float[Tensor, "*N S"]
    weight_NS: Float[Tensor, "*N S"]
    """Sums to 1, and is exactly 0 for slots that were not kept."""


class Gate(nn.Module):
    """A linear gate over slots.

    Args:
        bias: standard checkpoints have none.
        top_k: slots kept; all by default.
    """

    def __init__(self, features: int, slots: int, top_k: int | None = None, bias: bool = False) -> None:
        super().__init__()
        self.top_k = top_k if top_k is not None and top_k < slots else None
        self.weight = nn.Parameter(torch.zeros(slots, features))
        self.bias = nn.Parameter(torch.zeros(slots)) if bias else None

    def forward(self, x_NH: Float[Tensor, "*N H"]) -> Gated:
        logits_NS = nn.functional.linear(x_NH.to(self.weight.dtype), self.weight, self.bias)
        weight_NS = logits_NS.float().softmax(-1)
        if self.top_k is not None:
            kept_NK = weight_NS.topk(self.top_k, dim=-1).indices
            weight_NS = weight_NS * torch.zeros_like(weight_NS).scatter(-1, kept_NK, 1.0)
            weight_NS = weight_NS / weight_NS.sum(-1, keepdim=True).detach()
        return Gated(logits_NS, weight_NS)


def by_expert(weight_NS: Float[Tensor, "*N S"], slot_to_expert_S: Int[Tensor, " S"], experts: int) -> Float[Tensor, "*N U"]:
    """Weights (or counts) of slots, summed over those that share an expert."""
    zeros = weight_NS.new_zeros(*weight_NS.shape[:-1], experts)
    return zeros.index_add(-1, slot_to_expert_S, weight_NS)


class Ridge:
    """Ridge regression of expert on features, from running sums (as in DUME, arXiv 2603.29765).

    Weights are fitted to 1 for a token's own expert and 0 for the others, so a logit is near the probability of the expert.
    """

    def __init__(self, features: int, experts: int = 0) -> None:
        self.gram_HH = torch.zeros(features + 1, features + 1, dtype=torch.float64)
        """Sums of products of features; the last one is the constant 1."""
        self.moment_HU = torch.zeros(features + 1, experts, dtype=torch.float64)

    def add(self, features_NH: Float[Tensor, "N H"], expert_or_weight_N: Int[Tensor, " N"] | Float[Tensor, "N U"]) -> None:
        """Count tokens with the index of their expert, or with a weight on each.

        An index beyond the experts known so far adds experts; to all tokens before, they were not the right one.
        """
        x_NH = nn.functional.pad(features_NH.detach().double().cpu(), (0, 1), value=1.0)
        target = expert_or_weight_N.detach().cpu()
        if target.ndim == 1:
            self._widen(int(target.max()) + 1 if len(target) else 0)
            moment_UH = torch.zeros_like(self.moment_HU.T).index_add(0, target.long(), x_NH)
        else:
            self._widen(target.shape[1])
            moment_UH = target.double().T @ x_NH
        self.moment_HU[:, : len(moment_UH)] += moment_UH.T
        self.gram_HH += x_NH.T @ x_NH

    def merge(self, other: Ridge) -> Ridge:
        """Add what another has counted over the same features and experts."""
        self._widen(other.moment_HU.shape[1])
        self.moment_HU[:, : other.moment_HU.shape[1]] += other.moment_HU
        self.gram_HH += other.gram_HH
        return self

    def _widen(self, experts: int) -> None:
        self.moment_HU = nn.functional.pad(self.moment_HU, (0, max(experts - self.moment_HU.shape[1], 0)))

    def solve(self, penalty: float = 1e-3, intercept: bool = True) -> tuple[Float[Tensor, "U H"], Float[Tensor, " U"]]:
        """The minimiser of ``sum |W x + b - y|^2 + penalty * m * |W|^2``, fp32.

        Args:
            penalty: in units of m, the mean over features of their sum of squares, so that it means the same for any number
                of tokens and any scale. Not applied to the intercept.
            intercept: fit b too; else it is 0.
        """
        size = len(self.gram_HH) - (not intercept)
        gram_HH, moment_HU = self.gram_HH[:size, :size].clone(), self.moment_HU[:size]
        scale = self.gram_HH.diagonal()[:-1].mean().clamp_min(1e-30)
        gram_HH.diagonal()[: len(self.gram_HH) - 1] += penalty * scale
        solution_UH = torch.linalg.lstsq(gram_HH, moment_HU).solution.T.float()
        H = len(self.gram_HH) - 1
        bias_U = solution_UH[:, H] if intercept else torch.zeros(len(solution_UH))
        return solution_UH[:, :H].contiguous(), bias_U.contiguous()


class Centroids:
    """Nearest mean in units of each feature's spread within experts, from running sums: the form for a few example prompts,
    of which there are fewer tokens than features.

    Logits are those of Gaussians with one diagonal covariance, up to what all experts share.
    """

    def __init__(self, features: int, experts: int) -> None:
        self.count_U = torch.zeros(experts, dtype=torch.float64)
        self.sum_UH = torch.zeros(experts, features, dtype=torch.float64)
        self.square_UH = torch.zeros(experts, features, dtype=torch.float64)

    def add(self, features_NH: Float[Tensor, "N H"], expert_N: Int[Tensor, " N"]) -> None:
        x_NH, expert_N = features_NH.detach().double().cpu(), expert_N.detach().cpu().long()
        self.count_U += torch.bincount(expert_N, minlength=len(self.count_U))
        self.sum_UH.index_add_(0, expert_N, x_NH)
        self.square_UH.index_add_(0, expert_N, x_NH.square())

    def solve(self, intercept: bool = True) -> tuple[Float[Tensor, "U H"], Float[Tensor, " U"]]:
        """Weights and biases of the logits, averaged over features, fp32. An expert without examples gets zeros."""
        mean_UH = self.sum_UH / self.count_U.clamp_min(1)[:, None]
        within_H = (self.square_UH - self.count_U[:, None] * mean_UH.square()).sum(0) / self.count_U.sum().clamp_min(1)
        within_H = within_H.clamp_min(1e-3 * within_H.mean().clamp_min(1e-30))
        seen_U1 = (self.count_U > 0).double()[:, None]
        middle_H = (mean_UH * seen_U1).sum(0) / seen_U1.sum().clamp_min(1)
        away_UH = (mean_UH - middle_H) * seen_U1
        weight_UH = away_UH / within_H / len(within_H)
        bias_U = -(weight_UH * (mean_UH + middle_H) / 2).sum(-1) if intercept else torch.zeros(len(weight_UH))
        return weight_UH.float(), bias_U.float()


def balance(
    gated: Gated, slot_to_expert_S: Int[Tensor, " S"], experts: int, counted_N: Bool[Tensor, "*N"] | None = None
) -> Float[Tensor, ""]:
    """Load balance of one gate over distinct experts (Switch Transformer, arXiv 2101.03961, eq. 4): 0 when even, ``U - 1``
    when all goes to one. Slots that share an expert are one, and padding is not counted.

    Of several ranks each gives its part: weighted by their numbers of tokens, the parts add up to the loss of all tokens.
    """
    weight_NS, share_NS = (_counted(x, counted_N) for x in (gated.weight_NS.detach(), gated.logits_NS.float().softmax(-1)))
    used_S, wanted_S = _mean_of_all_ranks(weight_NS), share_NS.sum(0) / max(len(share_NS), 1)
    used_U, wanted_U = (by_expert(x, slot_to_expert_S, experts) for x in (used_S, wanted_S))
    return experts * (used_U * wanted_U).sum() - 1


def _mean_of_all_ranks(x_NS: Float[Tensor, "N S"]) -> Float[Tensor, " S"]:
    sums = torch.cat([x_NS.sum(0), x_NS.new_tensor([len(x_NS)])])
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(sums)
    return sums[:-1] / sums[-1].clamp_min(1)


def z_loss(gated: Gated, counted_N: Bool[Tensor, "*N"] | None = None) -> Float[Tensor, ""]:
    """Mean squared log-partition of one gate's logits (ST-MoE, arXiv 2202.08906, eq. 5)."""
    return _mean(_counted(gated.logits_NS.float(), counted_N).logsumexp(-1).square())


def entropy(
    gated: Gated, slot_to_expert_S: Int[Tensor, " S"], experts: int, counted_N: Bool[Tensor, "*N"] | None = None
) -> Float[Tensor, ""]:
    """Mean entropy in nats of one gate's softmax over distinct experts."""
    share_NU = by_expert(_counted(gated.logits_NS.float(), counted_N).softmax(-1), slot_to_expert_S, experts)
    return _mean(torch.special.entr(share_NU).sum(-1))


def auxiliary(
    gates: Sequence[Gated],
    slot_to_expert_S: Int[Tensor, " S"],
    experts: int,
    counted_N: Bool[Tensor, "*N"] | None = None,
    *,
    balance_by: float = 0.0,
    z_by: float = 0.0,
    entropy_by: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean over gates of the weighted auxiliary losses, each taken of one gate: pooled over layers, uneven ones cancel."""
    total = torch.zeros((), device=gates[0].logits_NS.device)
    for gated in gates:
        if balance_by:
            total = total + balance_by * balance(gated, slot_to_expert_S, experts, counted_N)
        if z_by:
            total = total + z_by * z_loss(gated, counted_N)
        if entropy_by:
            total = total + entropy_by * entropy(gated, slot_to_expert_S, experts, counted_N)
    return total / len(gates)


def _counted(x: Tensor, counted_N: Tensor | None) -> Tensor:
    return x.flatten(0, -2) if counted_N is None else x[counted_N]


def _mean(x_N: Float[Tensor, " N"]) -> Float[Tensor, ""]:
    """0 of no tokens: a rank may have none in a pass."""
    return x_N.sum() / max(len(x_N), 1)
