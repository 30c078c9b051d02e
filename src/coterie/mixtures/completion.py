"""Text in, text out, on top of Hugging Face's ``generate``: prompts as rows of tokens, and what is read of the answers.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from coterie.corpora.conversations import Renderer
from coterie.errors import RequestError


def prompts(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    max_new_tokens: int,
    pad: int,
    *,
    chat: bool = False,
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Rows of tokens, padded on the left, and their mask.

    Each begins with the first token of a document, as in training, or with ``chat`` as the tokenizer's chat template has it;
    its beginning is cut if there is no room.
    """
    room = context - max_new_tokens
    if room < 1:
        raise RequestError(
            "nothing would be left of the prompt",
            where="max_new_tokens",
            expected=f"below {context}, the experts' context",
            found=str(max_new_tokens),
        )
    if chat:
        ask = Renderer(tokenizer).question
        return _padded([torch.tensor(ask(text)[-room:]) for text in texts], pad)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    start = [] if first is None else [first]
    rows = [torch.tensor([*start, *tokenizer(t, add_special_tokens=False)["input_ids"]][-room:]) for t in texts]
    if not all(map(len, rows)):
        raise RequestError("an empty prompt needs a tokenizer with a first token", where="text")
    return _padded(rows, pad)


def _padded(rows: list[Tensor], pad: int) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    ids_BT = pad_sequence(rows, batch_first=True, padding_value=pad, padding_side="left")
    return ids_BT, pad_sequence([torch.ones_like(row) for row in rows], batch_first=True, padding_side="left")


def before(stops: Sequence[str], text: str) -> str:
    """The text before the first stop."""
    return text[: min((at for at in map(text.find, stops) if at >= 0), default=len(text))]
