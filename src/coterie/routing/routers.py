"""Routers: causal features of the prefix -> logits over distinct experts.

At position t a router sees the tokens x_0..x_t and how likely each expert found them; its weights predict x_{t+1}. It owns
all its parameters and reads nothing of an expert but log-probabilities, and those of ineligible experts are replaced before
they are used. A router can go on from a state (the running sums at the last position), so that generation costs one step a
token.

Evidence at t is log P_u(x_t | x_<t): 0 at a document's first token, which no expert predicts.

Shapes: B rows, T positions, U distinct experts, V vocabulary, H hidden.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from coterie.routing.scan import decayed_sum

State = dict[str, Tensor]
"""Running sums at the last position, [B, channels]."""


class RouterModule(nn.Module):
    """Uniform, and the base of the others: equal logits."""

    needs_evidence = False
    """Whether it reads the experts' log-probabilities of the prefix."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = experts

    def forward(
        self,
        ids_BT: Int[Tensor, "B T"],
        position_BT: Int[Tensor, "B T"],
        eligible_BTU: Bool[Tensor, "B _ U"],
        evidence_BTU: Float[Tensor, "B T U"] | None = None,
        state: State | None = None,
    ) -> tuple[Float[Tensor, "B T U"], State]:
        """Logits (those of ineligible experts mean nothing) and the state to go on from."""
        return torch.zeros(*ids_BT.shape, self.experts, device=ids_BT.device), {}


class Evidence(nn.Module):
    """The experts' own likelihood of the prefix: ``sum_{u <= t} decay^(t+1-u) log P(x_u) / tau``.

    With ``fit``, decay and tau are learned; a decay of 1 then starts at 0.999, as its logit must be finite."""

    def __init__(self, decay: float = 1.0, tau: float = 1.0, fit: bool = True) -> None:
        super().__init__()
        self.constants = None if fit else (decay, tau)
        if fit:
            self.decay_logit = nn.Parameter(torch.logit(torch.tensor(float(decay)), eps=1e-3))
            self.log_tau = nn.Parameter(torch.tensor(float(tau)).log())

    def forward(
        self, evidence_BTU: Tensor, position_BT: Tensor, eligible_BTU: Tensor, carry_BU: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        decay, tau = self.constants or (self.decay_logit.sigmoid(), self.log_tau.exp())
        evidence_BTU = torch.where(eligible_BTU, evidence_BTU, 0.0)
        sum_BTU = decayed_sum(evidence_BTU, position_BT, decay, carry_BU)
        return decay * sum_BTU / tau, sum_BTU[:, -1]


class PosteriorModule(RouterModule):
    """Bayes: ``prior_u * prod P_u(x)^(decay^age / tau)`` over the prefix; with decay = tau = 1 the exact posterior over
    which expert wrote the document."""

    needs_evidence = True

    def __init__(self, experts: int, decay: float = 1.0, tau: float = 1.0, fit: bool = True) -> None:
        super().__init__(experts)
        self.evidence = Evidence(decay, tau, fit)
        self.log_prior_U = nn.Parameter(torch.zeros(experts)) if fit else None

    def forward(
        self,
        ids_BT: Tensor,
        position_BT: Tensor,
        eligible_BTU: Tensor,
        evidence_BTU: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        logits_BTU, sum_BU = self.evidence(evidence_BTU, position_BT, eligible_BTU, (state or {}).get("evidence"))
        return logits_BTU if self.log_prior_U is None else logits_BTU + self.log_prior_U, {"evidence": sum_BU}


class Prefix(nn.Module):
    """A linear map of the prefix's token frequencies, over all of it and over its recent past: two rows of a table for
    each token, averaged evenly and with a learned decay. The averages are smoothed by a learned number of tokens that say
    nothing, so that a document's first few tokens do not decide alone."""

    SCALE = 10.0
    """Of the frequencies. A frequency is small and its table row must become large: this is the table's learning rate."""

    def __init__(self, vocab_size: int, width: int, std: float) -> None:
        super().__init__()
        self.width = width
        self.table_V2W = nn.Parameter(std * torch.randn(vocab_size, 2 * width))
        self.decay_logit = nn.Parameter(torch.logit(torch.tensor(0.9)))
        self.log_smoothing = nn.Parameter(torch.tensor(16.0).log())

    def forward(self, ids_BT: Tensor, position_BT: Tensor, carry_B2W: Tensor | None) -> tuple[Tensor, Tensor]:
        recent, smoothing = self.decay_logit.sigmoid(), self.log_smoothing.exp()
        decay_2W = torch.cat([torch.ones_like(recent).expand(self.width), recent.expand(self.width)])
        sum_BT2W = decayed_sum(F.embedding(ids_BT, self.table_V2W), position_BT, decay_2W, carry_B2W)
        length_BT1 = (position_BT + 1)[..., None].to(sum_BT2W.dtype)
        even_BTW = sum_BT2W[..., : self.width] / (length_BT1 + smoothing)
        late_BTW = sum_BT2W[..., self.width :] / ((1 - recent**length_BT1) / (1 - recent) + smoothing)
        return self.SCALE * (even_BTW + late_BTW), sum_BT2W[:, -1]


class LinearModule(RouterModule):
    """Linear in causal prefix features: token frequencies, and if asked the posterior's log-weights (through the identity at
    first, so that it starts as the posterior)."""

    FLOOR = -20.0
    """Log-weights of the posterior are cut off here: below e^-20 they only say no, and unbounded features unsettle a fit."""

    def __init__(self, experts: int, vocab_size: int, features: tuple[str, ...] = ("tokens",), hidden: int | None = None):
        super().__init__(experts)
        self.needs_evidence = "posterior" in features
        width = hidden or experts
        self.tokens = Prefix(vocab_size, width, std=0.02 if hidden else 0.0) if "tokens" in features else None
        self.bias_U = nn.Parameter(torch.zeros(experts))
        if self.needs_evidence:
            self.evidence = Evidence(decay=0.95)  # near what fits find; from 1 they need many more steps
            self.change_UU = nn.Parameter(torch.zeros(experts, experts))

    def forward(
        self,
        ids_BT: Tensor,
        position_BT: Tensor,
        eligible_BTU: Tensor,
        evidence_BTU: Tensor | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        state, new = state or {}, {}
        hidden_BTW = z_BTU = None
        if self.tokens is not None:
            hidden_BTW, new["tokens"] = self.tokens(ids_BT, position_BT, state.get("tokens"))
        if self.needs_evidence:
            z_BTU, new["evidence"] = self.evidence(evidence_BTU, position_BT, eligible_BTU, state.get("evidence"))
            z_BTU = z_BTU.masked_fill(~eligible_BTU, -torch.inf).log_softmax(-1).clamp_min(self.FLOOR)
            z_BTU = torch.where(eligible_BTU, z_BTU, 0.0)
        logits_BTU = self.combine(hidden_BTW, z_BTU) + self.bias_U
        if z_BTU is not None:
            logits_BTU = logits_BTU + z_BTU + z_BTU @ self.change_UU
        return logits_BTU, new

    def combine(self, hidden_BTW: Tensor | None, z_BTU: Tensor | None) -> Tensor:
        return torch.zeros(()) if hidden_BTW is None else hidden_BTW


class MlpModule(LinearModule):
    """One hidden layer with GELU on the same features; starts as the linear router's start (its last layer is zero)."""

    def __init__(self, experts: int, vocab_size: int, features: tuple[str, ...] = ("tokens",), hidden: int = 32):
        super().__init__(experts, vocab_size, features, hidden)
        self.hidden_bias_H = nn.Parameter(torch.zeros(hidden))
        self.read_UH = nn.Parameter(0.02 * torch.randn(experts, hidden)) if self.needs_evidence else None
        self.last_HU = nn.Parameter(torch.zeros(hidden, experts))

    def combine(self, hidden_BTW: Tensor | None, z_BTU: Tensor | None) -> Tensor:
        hidden_BTH = self.hidden_bias_H if hidden_BTW is None else hidden_BTW + self.hidden_bias_H
        if z_BTU is not None and self.read_UH is not None:
            hidden_BTH = hidden_BTH + z_BTU @ self.read_UH
        return F.gelu(hidden_BTH) @ self.last_HU
