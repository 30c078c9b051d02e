"""When slots that share an expert can be written as one expert, and what is written then.

A standard gate has no bias, so it cannot say that one expert stands for several slots. With the same number c of slots for
each expert, and equal rows for the slots of one, it need not: softmax over slots gives each expert c equal shares, and the k
largest are those of whole experts if c divides k, or of one alone if k <= c.

Shapes: S slots, U distinct experts, H hidden.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Seating:
    """What is written: the experts in order (repeats are copies), the gates' rows and how many are kept."""

    experts: list[int]
    gates: Mapping[str, Tensor]
    top_k: int


def expanded(seats: Sequence[int], gates: Mapping[str, Tensor], top_k: int | None) -> Seating:
    """One copy a slot: what the mixture does, in any format."""
    return Seating(list(seats), gates, min(top_k or len(seats), len(seats)))


def folded(seats: Sequence[int], gates: Mapping[str, Tensor], top_k: int | None) -> Seating:
    """One copy a distinct expert; the row of its gate is the mean of its slots'."""
    U, slots = max(seats) + 1, max(Counter(seats).values())
    where = torch.tensor(list(seats))
    rows = {n: torch.stack([gate_SH[where == u].mean(0) for u in range(U)]) for n, gate_SH in gates.items()}
    kept = len(seats) if top_k is None else top_k
    return Seating(list(range(U)), rows, min(-(-kept // slots), U))


def why_not(seats: Sequence[int], gates: Mapping[str, Tensor], top_k: int | None) -> str | None:
    """Why folding would change the function; None if it would not."""
    counts = Counter(seats)
    if len(counts) == 1:
        return None
    if len(set(counts.values())) > 1:
        return f"experts have different numbers of slots ({', '.join(str(counts[u]) for u in sorted(counts))})"
    c, where = counts[0], torch.tensor(list(seats))
    if c > 1 and any(not bool((gate_SH == gate_SH[_first(where)]).all()) for gate_SH in gates.values()):
        return "slots of one expert have different rows in the gate"
    if top_k is not None and top_k > c and top_k % c:
        return f"top_k {top_k} keeps a part of an expert's {c} slots"
    return None


def _first(seats_S: Tensor) -> Tensor:
    """For each slot, the first one with the same expert."""
    return (seats_S[:, None] == seats_S[None]).float().argmax(1)
