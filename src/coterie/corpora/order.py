"""In which order blocks are trained on: a deterministic, low-discrepancy mix of sources, in tokens.

The whole order is known before the first step, as two arrays, so step i is looked up and never replayed: resuming needs no
state. Each source is a line of passes over its blocks, reshuffled for every pass. Block j of source s stands at the virtual
time (tokens before it + half of its own) / weight; the lines are merged by that time. So at any moment every source has had
its share of the tokens to within about a block, which random draws never give.

`S` sources, `N` blocks of a source, `I` entries of the order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64


class Order:
    """Blocks in training order.

    Args:
        sources: tokens of each block (padding not counted), one array for each source.
        weights: share of the tokens of each source; in proportion to their tokens if none are given, so that one epoch
            is one pass over each.
        seed: of the shuffles.
        group: rows that belong together: so many blocks of one source stand side by side, as one optimizer step takes
            them. What is left of a pass goes into the next one.
        tokens: budget; the first block with which the sum reaches it is the last one.
        epochs: budget in units of all sources' tokens, instead; need not be whole.

    Attributes:
        source, block: number of the source and of the block in it, for each entry.
        tokens: sum of the tokens of all entries.
    """

    def __init__(
        self,
        sources: Sequence[Int64[np.ndarray, " N"]],
        weights: Sequence[float] | None = None,
        seed: int = 0,
        *,
        group: int = 1,
        tokens: int | None = None,
        epochs: float | None = None,
    ) -> None:
        sizes = [int(tokens_N.sum()) for tokens_N in sources]
        assert sizes, "no source"
        assert all(len(tokens_N) and int(tokens_N.min()) > 0 for tokens_N in sources), "an empty source or block"
        assert (tokens is None) != (epochs is None), "give either tokens or epochs"
        share_S = [float(w) for w in (weights if weights is not None else sizes)]
        assert len(share_S) == len(sizes)
        assert all(w > 0 for w in share_S)
        budget = tokens if tokens is not None else math.ceil(sum(sizes) * float(epochs or 0))
        assert budget > 0, "an empty budget"

        # After virtual time `until`, the merged lines hold at least the budget: each is at most half a block behind.
        until = (budget + group * sum(int(tokens_N.max()) for tokens_N in sources)) / sum(share_S)
        blocks, counts, times, owners = [], [], [], []
        for s, (tokens_N, share) in enumerate(zip(sources, share_S, strict=True)):
            passes = math.ceil((share * until + 2 * group * int(tokens_N.max())) / sizes[s])
            block = np.concatenate([shuffled(len(tokens_N), seed, s, p) for p in range(passes)])
            block = block[: len(block) // group * group]
            count = tokens_N[block].astype(np.int64)
            together = count.reshape(-1, group).sum(1)
            blocks.append(block)
            counts.append(count)
            times.append(np.repeat((np.cumsum(together) - together / 2) / share, group))
            owners.append(np.full(len(block), s, dtype=np.int64))
        time_I, source_I = np.concatenate(times), np.concatenate(owners)
        merged = np.lexsort((source_I, time_I))
        total_I = np.cumsum(np.concatenate(counts)[merged])
        last = int(np.searchsorted(total_I, budget)) // group * group + group - 1
        assert last < len(total_I)
        merged = merged[: last + 1]
        self.source: Int64[np.ndarray, " I"] = source_I[merged]
        self.block: Int64[np.ndarray, " I"] = np.concatenate(blocks)[merged]
        self.tokens = int(total_I[last])

    def __len__(self) -> int:
        return len(self.block)


def shuffled(count: int, seed: int, source: int, turn: int) -> Int64[np.ndarray, " N"]:
    """A permutation that depends on nothing but its arguments: numpy promises that a bit generator's raw stream never
    changes, and promises no such thing for ``permutation``."""
    stream = np.random.Philox(np.random.SeedSequence([seed % 2**64, source, turn]))
    return np.argsort(stream.random_raw(count), kind="stable")
