"""The tensors of many experts' low-rank updates that train, or rest, together; see `coterie.models.stack`.

Shapes: M tokens, I inputs, O outputs, U running experts, R ranks together, G rows of a gate, P pairs of token and expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Factors(NamedTuple):
    """One expert's update of one linear, ``scale * B @ A``."""

    A_RI: Float[Tensor, "R I"]
    B_OR: Float[Tensor, "O R"]
    scale: float


Layout = tuple[bool, tuple[int, ...], tuple[float, ...]]
"""Of a block's ranks: whether all updates have one rank, whose each is, and its scale."""


@dataclass
class Weights:
    """Who answers each token, for all linears that go by one gate."""

    dense_MU: Float[Tensor, "M U"]
    """Weights over running experts."""
    _columns: dict[Layout, Tensor] = field(default_factory=dict)
    _pairs: Pairs | None = None

    def columns(self, block: Block) -> Tensor:
        """Weights times scales, shaped to multiply a block's ranks; the same for all blocks of one layout."""
        if block.layout not in self._columns:
            w_MU = self.dense_MU.to(block.down.dtype)
            if block.even:
                w_MU = w_MU if block.everyone else w_MU[:, block.owner_R]
                w_M = w_MU if block.unit else w_MU * block.scale_R
                self._columns[block.layout] = w_M[:, None, :, None]
            else:
                self._columns[block.layout] = w_MU.index_select(1, block.owner_R) * block.scale_R
        return self._columns[block.layout]

    def pairs(self, chosen: int) -> Pairs:
        """The same, sorted by expert, if no token has more than ``chosen`` experts of weight above 0."""
        if self._pairs is None:
            self._pairs = Pairs.of(self.dense_MU, chosen)
        return self._pairs


class Pairs(NamedTuple):
    """Tokens with the experts that answer them, sorted by expert."""

    token_P: Tensor
    expert_P: Tensor
    weight_P1: Tensor
    ends_U: Tensor
    """Where each expert's pairs end."""

    @classmethod
    def of(cls, dense_MU: Tensor, chosen: int) -> Pairs:
        weight_Mk, expert_Mk = dense_MU.topk(chosen, dim=-1)
        expert_P, order_P = expert_Mk.flatten().sort(stable=True)
        ends_U = torch.bincount(expert_P, minlength=dense_MU.shape[-1]).cumsum(0).int()
        return cls(order_P // chosen, expert_P, weight_Mk.flatten()[order_P, None], ends_U)


Group = tuple[Sequence[int], Sequence[Mapping[str, Factors]], bool]
"""Members, their factors, and whether they train."""


class Block(nn.Module):
    """Experts of one inlet that train, or rest, together.

    Args:
        members: their numbers among the running experts.
        factors: of each member, by linear.
        gate_GI: rows of a gate to be multiplied in the same product.
    """

    owner_R: Tensor
    scale_R: Tensor
    ups: Sequence[nn.Parameter]

    def __init__(
        self,
        linears: Sequence[str],
        outputs: Sequence[int],
        members: Sequence[int],
        factors: Sequence[Mapping[str, Factors]],
        gate_GI: Tensor | None,
        like_I: Tensor,
        running: int,
    ) -> None:
        super().__init__()
        self.linears, self.members = tuple(linears), tuple(members)
        self.ranks = [[f[name].A_RI.shape[0] if name in f else 0 for f in factors] for name in linears]
        scales = [[f[name].scale if name in f else 1.0 for f in factors] for name in linears]
        downs = [f[name].A_RI for name in linears for f in factors if name in f]
        self.gate_rows = 0 if gate_GI is None else gate_GI.shape[0]
        empty_0I = like_I.new_zeros(0, like_I.shape[-1])
        self.down = nn.Parameter(torch.cat([empty_0I, *downs, *([] if gate_GI is None else [gate_GI])]).to(like_I))
        ups = (
            torch.cat([like_I.new_zeros(rows, 0), *(f[name].B_OR for f in factors if name in f)], 1).to(like_I)
            for name, rows in zip(linears, outputs, strict=True)
        )
        self.ups = cast(Sequence[nn.Parameter], nn.ParameterList(map(nn.Parameter, ups)))
        flat = {r for row in self.ranks for r in row}
        self.total = sum(map(sum, self.ranks))
        self.even = len(flat) == 1 and all(row == scales[0] for row in scales)
        self.unit = self.even and set(scales[0]) == {1.0}
        self.everyone = self.members == tuple(range(running))
        self.width = flat.pop() if self.even else 0
        """Rank of every update, if they are all alike."""
        if self.even:
            owner, scale = list(self.members), scales[0]
        else:
            owner = [m for row in self.ranks for m, r in zip(self.members, row, strict=True) for _ in range(r)]
            pairs = [p for row, ss in zip(self.ranks, scales, strict=True) for p in zip(row, ss, strict=True)]
            scale = [s for r, s in pairs for _ in range(r)]
        self.layout: Layout = (self.even, tuple(owner), tuple(scale))
        self.register_buffer("owner_R", torch.tensor(owner, dtype=torch.long, device=like_I.device), persistent=False)
        self.register_buffer("scale_R", torch.tensor(scale, dtype=like_I.dtype, device=like_I.device), persistent=False)
        self.scales = scales

    def spans(self, member: int) -> list[slice]:
        """Which ranks of each linear are one member's."""
        at = self.members.index(member)
        return [slice(sum(ranks[:at]), sum(ranks[: at + 1])) for ranks in self.ranks]

    def of(self, member: int) -> dict[str, Factors]:
        """One member's factors, as views."""
        low, found = 0, {}
        at = self.members.index(member)
        for number, span in enumerate(self.spans(member)):
            if span.stop > span.start:
                A_RI, B_OR = self.down[low + span.start : low + span.stop], self.ups[number][:, span]
                found[self.linears[number]] = Factors(A_RI, B_OR, self.scales[number][at])
            low += sum(self.ranks[number])
        return found

    @property
    def gate_GI(self) -> Tensor:
        return self.down[self.total :]

    def by_expert(self, number: int, x_PI: Tensor, pairs: Pairs) -> Tensor | None:
        """Updates of one linear for tokens sorted by expert, weighted; [P, O], or None where nobody has one."""
        low = sum(map(sum, self.ranks[:number]))
        sizes = (self.width, self.down.shape[1], self.ups[number].shape[0])
        whole = all(n * x_PI.element_size() % 16 == 0 for n in sizes)  # grouped products want rows of whole 16 bytes
        if self.even and self.everyone and whole:
            U, r = len(self.members), self.width
            A_UIR = self.down[low : low + U * r].view(U, r, -1).transpose(1, 2)
            B_URO = self.ups[number].view(-1, U, r).permute(1, 2, 0)
            w_P1 = pairs.weight_P1 if self.unit else pairs.weight_P1 * self.scale_R[pairs.expert_P, None]
            A_UIR, B_URO = A_UIR.to(x_PI.dtype), B_URO.to(x_PI.dtype)  # autocast does not know grouped products
            h_PR = F.grouped_mm(x_PI, A_UIR, offs=pairs.ends_U) * w_P1.to(x_PI.dtype)
            return F.grouped_mm(h_PR, B_URO, offs=pairs.ends_U)
        o_PO, ends = x_PI.new_zeros(len(x_PI), self.ups[number].shape[0]), [0, *pairs.ends_U.tolist()]
        for member in self.members:
            factors, span = self.of(member).get(self.linears[number]), slice(ends[member], ends[member + 1])
            if factors is not None and span.stop > span.start:
                h_PR = F.linear(x_PI[span], factors.A_RI) * (pairs.weight_P1[span] * factors.scale).to(x_PI.dtype)
                o_PO[span] = h_PR @ factors.B_OR.t()
        return o_PO
