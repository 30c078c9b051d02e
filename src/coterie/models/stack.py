"""Low-rank updates of many experts on one frozen linear, in one pass: tensors only, nobody is routed here.

``y = W x + sum_u w_u B_u A_u x s_u``. The linears of a layer that read one input (query, key and value; gate and up) form an
*inlet*: all their A of all experts, and the rows of a gate that reads the same input, are one matrix and one product; its
columns are scaled by the weights; each linear adds one product with all its B to what its frozen part gave. Ranks
concatenate, so they may differ, and an expert without an update somewhere has no columns there. No expert's own output
ever exists. The price is that every token pays for every expert, so where few experts are chosen of many, tokens are sorted
by expert instead.

Experts that train and experts that rest are different *blocks* with their own tensors, so that gradients and optimizer
states exist for what trains alone; an expert of no block is not run. In memory one A holds all of a block: a parameter an
expert would cost a copy of every A and B at every step.

Shapes: M tokens, I inputs, O outputs, L linears of an inlet, U running experts, R ranks together, G rows of a gate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Factors(NamedTuple):
    """One expert's update of one linear, ``scale * B @ A``."""

    A_RI: Float[Tensor, "R I"]
    B_OR: Float[Tensor, "O R"]
    scale: float


@dataclass
class Weights:
    """Who answers each token, for all linears that go by one gate."""

    dense_MU: Float[Tensor, "M U"]
    """Weights over running experts."""
    _columns: dict[Any, Tensor] = field(default_factory=dict)
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
        self.ups = nn.ParameterList(
            nn.Parameter(torch.cat([like_I.new_zeros(rows, 0), *(f[name].B_OR for f in factors if name in f)], 1).to(like_I))
            for name, rows in zip(linears, outputs, strict=True)
        )
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
        self.layout = (self.even, tuple(owner), tuple(scale))
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


SORT_FROM = 8
"""Experts for each one chosen, from which tokens are sorted by expert; measured by benchmarks/adapters_speed.py."""


class Inlet(nn.Module):
    """What the linears that read one input share: all A, and the gate's rows.

    Args:
        linears: their names, in the order in which the model calls them.
        weigh: gives the weights for a shape of tokens, from the gate's logits [..., G] if it reads this input.
        dropout: of the input of training experts.
    """

    gate: nn.Parameter | None
    like_I: Tensor

    def __init__(
        self,
        linears: Sequence[str],
        outputs: Sequence[int],
        like_I: Tensor,
        weigh: Callable[[Tensor | None, torch.Size], Weights],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.linears, self.outputs, self.weigh, self.dropout = tuple(linears), tuple(outputs), weigh, dropout
        self.register_buffer("like_I", like_I.new_zeros(0, like_I.shape[-1]), persistent=False)
        self.blocks = nn.ModuleList()
        self.register_parameter("gate", None)
        self.fused: int | None = None
        self.chosen: int | None = None
        self.waiting: dict[str, Any] = {}

    def compose(self, groups: Sequence[Group], gate_GI: Tensor | None, moves: bool, chosen: int | None) -> None:
        """Lay the tensors out anew.

        Args:
            groups: those without an update here take no space.
            gate_GI: the gate's rows; they join a group that trains, or rests, as they do.
            moves: whether the gate trains.
            chosen: most experts of weight above 0 that a token will have; None: all.
        """
        self.chosen = chosen
        running = sum(len(members) for members, _, _ in groups)
        here = [g for g in groups if any(name in f for f in g[1] for name in self.linears)]
        self.fused = None
        if gate_GI is not None:
            fits = [i for i, (_, _, trains) in enumerate(here) if trains == moves and not (trains and self.dropout)]
            self.fused = fits[0] if fits else None
        self.blocks = nn.ModuleList(
            Block(
                self.linears, self.outputs, members, factors, gate_GI if i == self.fused else None, self.like_I, running
            ).requires_grad_(trains)
            for i, (members, factors, trains) in enumerate(here)
        )
        apart = gate_GI is not None and self.fused is None
        self.gate = nn.Parameter(gate_GI.detach().to(self.like_I).clone(), requires_grad=moves) if apart else None  # type: ignore[union-attr]

    @property
    def rows_GI(self) -> Tensor | None:
        """The gate's rows, wherever they are."""
        return self.blocks[self.fused].gate_GI if self.fused is not None else self.gate  # type: ignore[return-value]

    def read(self, x_MI: Tensor, shape: torch.Size) -> None:
        """Multiply the input by all A, once for all linears; what each needs waits for it."""
        self.waiting = {name: [] for name in self.linears}
        x_of = [F.dropout(x_MI, self.dropout, True) if self._drops(b) else x_MI for b in self.blocks]
        logits, first_MR = None, None
        block: Any = self.blocks[self.fused] if self.fused is not None else None
        if block is not None and self._sorts(block):
            logits = F.linear(x_MI, block.gate_GI)
        elif block is not None:
            first_MR, logits = F.linear(x_MI, block.down).split([block.total, block.gate_rows], -1)
        elif self.gate is not None:
            logits = F.linear(x_MI, self.gate)
        weights = self.weigh(logits.view(*shape, -1) if logits is not None else None, shape)
        for i, (block, x) in enumerate(zip(self.blocks, x_of, strict=True)):
            if self._sorts(block):
                self._by_expert(block, x, weights)
                continue
            h_MR = first_MR if first_MR is not None and i == self.fused else F.linear(x, block.down)
            columns = weights.columns(block)
            if block.even:
                L, U, r = len(self.linears), len(block.members), block.width
                h_MR = (h_MR.view(-1, L, U, r) * columns.to(h_MR.dtype)).view(-1, L * U * r)
                parts = h_MR.view(-1, L, U * r).unbind(1) if L > 1 else [h_MR]
            else:
                parts = (h_MR * columns.to(h_MR.dtype)).split([sum(ranks) for ranks in block.ranks], -1)
            for name, part_MR, up_OR in zip(self.linears, parts, block.ups, strict=True):
                if part_MR.shape[-1]:
                    self.waiting[name].append((part_MR, up_OR))

    def _drops(self, block: Any) -> bool:
        return self.dropout > 0 and self.training and block.down.requires_grad

    def _sorts(self, block: Any) -> bool:
        """Whether sorting tokens by expert beats multiplying them by all ranks."""
        few = self.chosen is not None and len(block.members) >= SORT_FROM * self.chosen
        return few and not torch.is_grad_enabled()

    def _by_expert(self, block: Block, x_MI: Tensor, weights: Weights) -> None:
        assert self.chosen is not None
        pairs = weights.pairs(self.chosen)
        x_PI = x_MI[pairs.token_P]
        for number, name in enumerate(self.linears):
            o_PO = block.by_expert(number, x_PI, pairs)
            if o_PO is not None:
                self.waiting[name].append((pairs.token_P, o_PO))

    def add(self, name: str, y_MO: Tensor) -> Tensor:
        """Add the updates of one linear to what its frozen part gave, in place."""
        for one, two in self.waiting.pop(name):
            if one.ndim == 2:
                y_MO.addmm_(one.to(y_MO.dtype), two.to(y_MO.dtype).t())
            else:
                y_MO.index_add_(0, one, two.to(y_MO.dtype))
        return y_MO


def moments(inlet: Inlet, optimizer: torch.optim.Optimizer) -> dict[int | str, bool]:
    """Which parts of an inlet that train have had a gradient, by AdamW's first moment: members by number, and ``gate``."""
    heard: dict[int | str, bool] = {}

    def moved(parameter: Tensor) -> Tensor:
        return optimizer.state.get(parameter, {}).get("exp_avg", torch.zeros_like(parameter)) != 0

    for number, block in enumerate(inlet.blocks):
        if not block.down.requires_grad:
            continue
        ups = [moved(up) for up in block.ups]  # type: ignore[union-attr]
        for member in block.members:  # type: ignore[union-attr]
            spans = block.spans(member)  # type: ignore[operator]
            heard[member] = any(bool(up[:, span].any()) for up, span in zip(ups, spans, strict=True))
        if number == inlet.fused:
            heard["gate"] = bool(moved(block.down)[block.total :].any())  # type: ignore[arg-type]
    if inlet.gate is not None and inlet.gate.requires_grad:
        heard["gate"] = bool(moved(inlet.gate).any())
    return heard


class Stacked(nn.Module):
    """A frozen linear with its experts' updates; stands where the linear stood.

    Args:
        linear: `nn.Linear`, or GPT-2's `Conv1D`.
        inlet: shared by all linears that read the same input; the first of them owns it.
    """

    def __init__(self, name: str, linear: nn.Module, inlet: Inlet, owns: bool) -> None:
        super().__init__()
        self.name, self.linear = name, linear
        if owns:
            self.inlet = inlet
        self._inlet = [inlet]  # in a list: not a submodule of every linear
        self.leads = owns

    @property
    def weight(self) -> Tensor:
        return self.linear.weight  # type: ignore[return-value]

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        inlet, x_MI = self._inlet[0], x.reshape(-1, x.shape[-1])
        if self.leads:
            inlet.read(x_MI, x.shape[:-1])
        return inlet.add(self.name, frozen(self.linear, x_MI)).view(*x.shape[:-1], -1)


def frozen(linear: Any, x_MI: Tensor) -> Tensor:
    """What the frozen linear gives, as a tensor of its own that can be added to."""
    if type(linear) is Conv1D:
        return torch.addmm(linear.bias, x_MI, linear.weight)
    if type(linear) is nn.Linear and not linear._forward_hooks and not linear._forward_pre_hooks:
        return F.linear(x_MI, linear.weight, linear.bias)
    return linear(x_MI).clone()  # somebody has put something else there, or listens


def shape_of(linear: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear that can carry updates; None for anything else."""
    if isinstance(linear, nn.Linear):
        return linear.in_features, linear.out_features
    if isinstance(linear, Conv1D):
        return linear.weight.shape[0], linear.weight.shape[1]
    return None
