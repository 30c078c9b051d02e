"""The rows of a training run: block i of a fixed order, as the Trainer wants them.

Sized and indexed (map-style): where training stands in the data is a function of the step alone, so resuming needs no
state of a sampler, and unsized data, which resumes at the wrong place, cannot get in here.

B rows, T positions, N rows of the whole run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from coterie.corpora.blocks import Blocks
from coterie.corpora.order import Order
from coterie.errors import RequestError
from coterie.models.packed_inputs import block_mask

Batch = dict[str, Tensor]

Loss = Callable[[nn.Module, Batch, Tensor], Tensor]
"""Of (model, batch, number of counted targets in the whole optimizer step): a sum over the batch's counted targets divided
by that number, so that accumulated batches add up to one large batch."""


class Rows(Dataset[Batch]):
    """Row i is block ``order.block[i]`` of ``sources[order.source[i]]``; with ``named``, batches say of which source."""

    def __init__(self, sources: Sequence[Blocks], order: Order, *, mask: bool, named: bool = False) -> None:
        self.order, self.mask, self.named = order, mask, named
        # Views without memmap's own bookkeeping, which costs more a row than the row.
        self.ids, self.position, self.target = (
            [np.asarray(getattr(s, name)) for s in sources] for name in ("ids", "position", "target")
        )
        self.padded = 0
        self.tokens_N = np.zeros(len(order), dtype=np.int64)
        for number, source in enumerate(sources):
            here = order.source == number
            self.tokens_N[here] = source.tokens_per_block[order.block[here]]

    def __len__(self) -> int:
        return self.padded or len(self.order)

    def pad(self, multiple: int) -> None:
        """Rows without targets at the end, up to a multiple: ranks that share a step must all have rows for it."""
        self.padded = -(-len(self.order) // multiple) * multiple

    def __getitem__(self, i: int) -> Batch:
        return {name: tensor[0] for name, tensor in self.__getitems__([i]).items()}

    def __getitems__(self, rows: Sequence[int]) -> Batch:
        """A whole batch at once: one read a tensor instead of one a row."""
        N = len(self.order)
        places = [(int(self.order.source[i % N]), int(self.order.block[i % N])) for i in rows]
        ids_BT, position_BT, target_BT = (
            np.stack([arrays[s][b] for s, b in places]) for arrays in (self.ids, self.position, self.target)
        )
        if max(rows) >= N:
            target_BT = target_BT * (np.asarray(rows) < N)[:, None].astype(target_BT.dtype)
        rows_of = batch(ids_BT, position_BT, target_BT, mask=self.mask)
        return rows_of | {"source": torch.tensor([source for source, _ in places])} if self.named else rows_of

    def tokens_after(self, rows_per_step: int) -> np.ndarray:
        """Tokens seen after each step (padding not counted), cumulative."""
        return np.add.reduceat(self.tokens_N, np.arange(0, len(self.order), rows_per_step)).cumsum()


def batch(ids_BT: np.ndarray, position_BT: np.ndarray, target_BT: np.ndarray, *, mask: bool) -> Batch:
    """Ids, positions that restart with each document, and labels: -100 wherever nothing is learned."""
    ids, position = torch.from_numpy(ids_BT).long(), torch.from_numpy(position_BT).long()
    labels = ids.masked_fill(torch.from_numpy(target_BT) == 0, -100)
    together = {"input_ids": ids, "position_ids": position, "labels": labels}
    return together | {"attention_mask": block_mask(position)} if mask else together


def as_is(batch: object) -> Batch:
    """The collator's part: ``Rows`` gives whole batches."""
    return cast(Batch, batch)


def require_fit(model: PreTrainedModel, blocks: Blocks) -> None:
    """RequestError if the blocks hold tokens or positions that the model does not have."""
    config = model.config.get_text_config()
    largest = {"vocab_size": int(blocks.ids.max()) + 1, "max_position_embeddings": int(blocks.position.max()) + 1}
    for key, needed in largest.items():
        if needed > (getattr(config, key, None) or needed):
            raise RequestError(
                "the blocks do not fit the model",
                where=key,
                found=f"{needed:,}",
                expected=f"at most {getattr(config, key):,}",
                do="tokenize with the model's own tokenizer" if key == "vocab_size" else "lower sequence_length",
            )
