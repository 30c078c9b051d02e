"""When slots that share an expert can be written as one expert, and what is written then.

A standard gate has no bias, so it cannot say that one expert stands for several slots. Where the slots of each expert have
equal rows it need not say so in two cases: if the k largest are slots of one expert, because each has at least k; and if
each has the same number c of slots and c divides k, as softmax then gives each c equal shares.

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
    counts, where = Counter(seats), torch.tensor(list(seats))
    if len(counts) in (1, len(seats)):
        return None
    if any(not bool((gate_SH == gate_SH[_first(where)]).all()) for gate_SH in gates.values()):
        return "slots of one expert have different rows in the gate"
    fewest, most = min(counts.values()), max(counts.values())
    if top_k is not None and top_k <= fewest:
        return None
    if fewest != most:
        return f"experts have different numbers of slots ({', '.join(str(counts[u]) for u in sorted(counts))})"
    if top_k is not None and top_k % most:
        return f"top_k {top_k} keeps a part of an expert's {most} slots"
    return None


def _first(seats_S: Tensor) -> Tensor:
    """For each slot, the first one with the same expert."""
    return (seats_S[:, None] == seats_S[None]).float().argmax(1)
