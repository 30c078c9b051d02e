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

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from coterie.models.stack_blocks import Block, Group, Weights

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
    blocks: Sequence[Block]

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
        self.blocks = cast(Sequence[Block], nn.ModuleList())
        self.register_parameter("gate", None)
        self.fused: int | None = None
        self.chosen: int | None = None
        self.waiting: dict[str, list[tuple[Tensor, Tensor]]] = {}

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
        blocks = (
            Block(
                self.linears, self.outputs, members, factors, gate_GI if i == self.fused else None, self.like_I, running
            ).requires_grad_(trains)
            for i, (members, factors, trains) in enumerate(here)
        )
        self.blocks = cast(Sequence[Block], nn.ModuleList(blocks))
        self.gate = None
        if gate_GI is not None and self.fused is None:
            self.gate = nn.Parameter(gate_GI.detach().to(self.like_I).clone(), requires_grad=moves)

    @property
    def rows_GI(self) -> Tensor | None:
        """The gate's rows, wherever they are."""
        return self.blocks[self.fused].gate_GI if self.fused is not None else self.gate

    def read(self, x_MI: Tensor, shape: torch.Size) -> None:
        """Multiply the input by all A, once for all linears; what each needs waits for it."""
        self.waiting = {name: [] for name in self.linears}
        x_of = [F.dropout(x_MI, self.dropout, True) if self._drops(b) else x_MI for b in self.blocks]
        logits, first_MR = None, None
        fused = self.blocks[self.fused] if self.fused is not None else None
        if fused is not None and self._sorts(fused):
            logits = F.linear(x_MI, fused.gate_GI)
        elif fused is not None:
            first_MR, logits = F.linear(x_MI, fused.down).split([fused.total, fused.gate_rows], -1)
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

    def _drops(self, block: Block) -> bool:
        return self.dropout > 0 and self.training and block.down.requires_grad

    def _sorts(self, block: Block) -> bool:
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
        ups = [moved(up) for up in block.ups]
        for member in block.members:
            spans = block.spans(member)
            heard[member] = any(bool(up[:, span].any()) for up, span in zip(ups, spans, strict=True))
        if number == inlet.fused:
            heard["gate"] = bool(moved(block.down)[block.total :].any())
    if inlet.gate is not None and inlet.gate.requires_grad:
        heard["gate"] = bool(moved(inlet.gate).any())
    return heard


class Stacked(nn.Module):
    """A frozen linear with its experts' updates; stands where the linear stood.

    Args:
        linear: `nn.Linear`, or GPT-2's `Conv1D`.
        inlet: shared by all linears that read the same input; the first of them owns it.
    """

    linear: nn.Linear | Conv1D

    def __init__(self, name: str, linear: nn.Module, inlet: Inlet, owns: bool) -> None:
        super().__init__()
        self.name, self.linear = name, cast("nn.Linear | Conv1D", linear)
        if owns:
            self.inlet = inlet
        self._inlet = [inlet]  # in a list: not a submodule of every linear
        self.leads = owns

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    def forward(self, x: Float[Tensor, "... I"]) -> Float[Tensor, "... O"]:
        inlet, x_MI = self._inlet[0], x.reshape(-1, x.shape[-1])
        if self.leads:
            inlet.read(x_MI, x.shape[:-1])
        return inlet.add(self.name, frozen(self.linear, x_MI)).view(*x.shape[:-1], -1)


def frozen(linear: nn.Linear | Conv1D, x_MI: Tensor) -> Tensor:
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
