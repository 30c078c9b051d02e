"""Text in, text out, on top of Hugging Face's ``generate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from coterie.errors import RequestError


def complete(
    model: Any,
    text: str | Sequence[str],
    time: Any,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    stop: str | Sequence[str] | None,
    seed: int | None,
) -> Any:
    """See `OutputsMixture.complete`."""
    if model.tokenizer is None:
        raise RequestError("this mixture has no tokenizer", do="set m.tokenizer, or call generate with ids")
    if temperature < 0:
        raise RequestError("a temperature is not negative", where="temperature", found=str(temperature))
    if temperature == 0 and (top_k, top_p, seed) != (None, None, None):
        raise RequestError("top_k, top_p and seed have no effect at temperature 0", where="temperature", do="raise it")
    texts = [text] if isinstance(text, str) else list(text)
    rows = [_prompt(model, t, max_new_tokens) for t in texts]
    T = max(map(len, rows))
    pad = model.generation_config.pad_token_id or 0
    ids_BT = torch.tensor([[pad] * (T - len(row)) + row for row in rows], device=model.device)
    mask_BT = torch.tensor([[0] * (T - len(row)) + [1] * len(row) for row in rows], device=model.device)
    how: dict[str, Any] = {"do_sample": temperature > 0, "max_new_tokens": max_new_tokens, "pad_token_id": pad}
    if temperature > 0:
        how |= {"temperature": temperature, "top_k": top_k or 0, "top_p": 1.0 if top_p is None else top_p}
    stops = [stop] if isinstance(stop, str) else list(stop or [])
    if stops:
        how |= {"stop_strings": stops, "tokenizer": model.tokenizer}
    out_BT = model.generate(ids_BT, attention_mask=mask_BT, time=time, seed=seed, **how)
    said = [_before(t, stops) for t in model.tokenizer.batch_decode(out_BT[:, T:], skip_special_tokens=True)]
    return said[0] if isinstance(text, str) else said


def _prompt(model: Any, text: str, max_new_tokens: int) -> list[int]:
    """Ids with the first token of a document before them, as in training; its beginning is cut if there is no room."""
    tokenizer, context = model.tokenizer, model.config.max_position_embeddings
    room = context - max_new_tokens
    if room < 1:
        raise RequestError(
            "nothing would be left of the prompt",
            where="max_new_tokens",
            expected=f"below {context}, the experts' context",
            found=str(max_new_tokens),
        )
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    start = [] if first is None else [first]
    ids = [*start, *tokenizer(text, add_special_tokens=False)["input_ids"]][-room:]
    if not ids:
        raise RequestError("an empty prompt needs a tokenizer with a first token", where="text")
    return ids


def _before(text: str, stops: Sequence[str]) -> str:
    ends = [at for at in (text.find(s) for s in stops) if at >= 0]
    return text[: min(ends)] if ends else text
