"""Text in, text out, on top of Hugging Face's ``generate``: prompts as rows of tokens, and what is read of the answers.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from coterie.errors import RequestError


class Options(TypedDict, total=False):
    """Keyword arguments of ``generate``."""

    do_sample: bool
    max_new_tokens: int
    pad_token_id: int
    temperature: float
    top_k: int
    top_p: float
    stop_strings: list[str]
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How text is drawn from a model."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    stops: Sequence[str]

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise RequestError("a temperature is not negative", where="temperature", found=str(self.temperature))

    def options(self, tokenizer: PreTrainedTokenizerBase, pad: int) -> Options:
        """What ``generate`` is told."""
        options: Options = {"do_sample": self.temperature > 0, "max_new_tokens": self.max_new_tokens, "pad_token_id": pad}
        if self.temperature > 0:
            top_p = 1.0 if self.top_p is None else self.top_p
            options |= {"temperature": self.temperature, "top_k": self.top_k or 0, "top_p": top_p}
        if self.stops:
            options |= {"stop_strings": list(self.stops), "tokenizer": tokenizer}
        return options

    def prompts(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, context: int, pad: int
    ) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
        """Rows of tokens, padded on the left, and their mask.

        Each begins with the first token of a document, as in training; its beginning is cut if there is no room.
        """
        room = context - self.max_new_tokens
        if room < 1:
            raise RequestError(
                "nothing would be left of the prompt",
                where="max_new_tokens",
                expected=f"below {context}, the experts' context",
                found=str(self.max_new_tokens),
            )
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        start = [] if first is None else [first]
        rows = [[*start, *tokenizer(text, add_special_tokens=False)["input_ids"]][-room:] for text in texts]
        if not all(rows):
            raise RequestError("an empty prompt needs a tokenizer with a first token", where="text")
        T = max(map(len, rows))
        return (
            torch.tensor([[pad] * (T - len(row)) + row for row in rows]),
            torch.tensor([[0] * (T - len(row)) + [1] * len(row) for row in rows]),
        )

    def answer(self, text: str) -> str:
        """The text before the first stop."""
        ends = [at for at in (text.find(stop) for stop in self.stops) if at >= 0]
        return text[: min(ends)] if ends else text
