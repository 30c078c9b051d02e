"""One question to a mixture: tokens, positions, padding, and which experts may answer each row.

Shapes: B rows, T positions, U distinct experts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from coterie.dates import Time, ordinal
from coterie.errors import RequestError
from coterie.models import packed_inputs as packing
from coterie.models.logprob import target_logp
from coterie.routing.eligibility import Eligibility

Times = Time | Sequence[Time | None] | Int[Tensor, " B"] | None
"""A date for all rows, or one for each; a number is a year. A tensor holds days since 0001-01-01."""


class Layout(TypedDict, total=False):
    """Where the tokens of a question lie in its rows, as Hugging Face says it."""

    attention_mask: Int[Tensor, "B past_and_T"] | None
    """1 where a token is none of padding."""
    position_ids: Int[Tensor, "B T"] | None
    """Positions that restart at 0 keep documents in one row apart."""


@dataclass(frozen=True)
class Query:
    """A question with everything filled in that was left out."""

    ids_BT: Int[Tensor, "B T"]
    position_BT: Int[Tensor, "B T"]
    mask_BT: Int[Tensor, "B past_and_T"] | None
    """1 where a token is none of padding, over all positions so far; None if nothing is padding."""
    attend_BT: Int[Tensor, "B past_and_T"] | None
    """The mask that experts need: None too if padding is on the right, where causal models do not see it."""
    eligible_BU: Bool[Tensor, "B U"]

    @classmethod
    def of(
        cls,
        ids_BT: Int[Tensor, "B T"],
        eligibility: Eligibility,
        *,
        time: Times = None,
        attention_mask: Int[Tensor, "B past_and_T"] | None = None,
        position_ids: Int[Tensor, "B T"] | None = None,
        past: int = 0,
    ) -> Query:
        """Positions that are not given count the tokens that are not padding, after ``past`` earlier ones.

        Raises:
            RequestError: no expert may answer at a date; documents packed into a row that is padded on the left.
        """
        B, T = ids_BT.shape
        eligible_BU = eligibility.mask(ordinals(time, B)).to(ids_BT.device)
        mask, position = attention_mask, None if position_ids is None else position_ids.expand(B, T)
        if mask is None or bool(mask.all()):
            position = torch.arange(past, past + T, device=ids_BT.device).expand(B, T) if position is None else position
            return cls(ids_BT, position, None, None, eligible_BU)
        counted_BT = mask.long().cumsum(-1) - 1
        position = (counted_BT[:, -T:] if position is None else position).masked_fill(mask[:, -T:] == 0, 0)
        if past == 0 and bool((mask.diff(dim=1) <= 0).all()):
            return cls(ids_BT, position, mask, None, eligible_BU)
        if past == 0 and bool(((position != counted_BT) & (mask != 0)).any()):
            raise RequestError(
                "documents packed into one row cannot be padded on the left",
                where="attention_mask",
                do="pad on the right, or give one document a row",
            )
        return cls(ids_BT, position, mask, mask, eligible_BU)

    @property
    def running(self) -> list[int]:
        """Experts that some row may use."""
        return self.eligible_BU.any(0).nonzero().flatten().tolist()

    @property
    def counted_BT(self) -> Bool[Tensor, "B T"]:
        """Tokens that something predicts: neither padding nor the first of a document."""
        counted_BT = self.position_BT > 0
        return counted_BT if self.mask_BT is None else counted_BT & self.mask_BT[:, -counted_BT.shape[1] :].bool()

    def inputs(self, model: nn.Module) -> dict[str, Tensor | bool]:
        """Keyword arguments of a model's forward, without a cache."""
        if self.attend_BT is None:
            return packing.inputs(model, self.ids_BT, self.position_BT)
        given = {"input_ids": self.ids_BT, "attention_mask": self.attend_BT, "position_ids": self.position_BT}
        return {**given, "use_cache": False}

    def log_probs(self, model: nn.Module) -> Float[Tensor, "B T V"]:
        """A model's log P(x_{t+1} | x_{<=t}) in nats, fp32."""
        return model(**self.inputs(model)).logits.float().log_softmax(-1)

    def token_logp(self, model: nn.Module, rows_B: Bool[Tensor, " B"] | slice = slice(None)) -> Float[Tensor, "rows T"]:
        """A model's log P of every token given those before; 0 at first tokens and padding.

        Padding is moved to the right, where causal models do not see it.
        """
        ids_BT, position_BT, order_BT = self.ids_BT[rows_B], self.position_BT[rows_B], None
        if self.attend_BT is not None:
            order_BT = (self.attend_BT[rows_B] == 0).long().argsort(dim=1, stable=True)
            ids_BT, position_BT = ids_BT.gather(1, order_BT), position_BT.gather(1, order_BT)
        logp_BT = nn.functional.pad(target_logp(model, ids_BT, position_BT), (1, 0))
        if order_BT is not None:
            logp_BT = torch.zeros_like(logp_BT).scatter(1, order_BT, logp_BT)
        return torch.where(self.counted_BT[rows_B], logp_BT, 0.0)


def ordinals(time: Times, rows: int) -> list[int | None]:
    """The date of each row as an ordinal.

    Raises:
        RequestError: not a date, or not as many as rows.
    """
    if isinstance(time, Tensor):
        days: list[int | None] = time.reshape(-1).tolist()
    elif time is None or isinstance(time, str) or not isinstance(time, Sequence):
        return [None if time is None else ordinal(time)] * rows
    else:
        days = [None if t is None else ordinal(t) for t in time]
    if len(days) != rows:
        raise RequestError("give one date, or one for each row", where="time", expected=f"{rows}", found=f"{len(days)}")
    return days


def refuse_date(time: Times, rows: int) -> None:
    """RequestError where a date is given that would be ignored: no expert is ruled out by one here."""
    if any(day is not None for day in ordinals(time, rows)):
        raise RequestError(
            "a date has no effect on this mixture: its experts answer whatever the date",
            where="time",
            expected="no date",
            found=str(time),
            do="leave it out, or let the experts meet at outputs with eligible: strict or inclusive",
        )
