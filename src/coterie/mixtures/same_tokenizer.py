"""Experts at the outputs speak one language: token i must mean the same to all of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from coterie.errors import RequestError
from coterie.spec.json_types import Settings

MEANING = ("model", "added_tokens", "normalizer", "pre_tokenizer")
"""Parts of tokenizer.json that decide which ids a text becomes."""


def require_same_tokenizer(experts: Sequence[tuple[str, Path]]) -> None:
    """Compare ``tokenizer.json`` of experts, given as (name, directory); one without a file is taken at its word.

    Raises:
        RequestError: names two experts and the first difference.
    """
    first: tuple[str, bytes] | None = None
    for name, folder in experts:
        file = folder / "tokenizer.json"
        if not file.is_file():
            continue
        data = file.read_bytes()
        if first is None:
            first = (name, data)
        elif data != first[1] and (found := difference(json.loads(first[1]), json.loads(data))):
            raise RequestError(
                f"experts {first[0]!r} and {name!r} have different tokenizers, so their probabilities cannot be mixed",
                where=str(file),
                found=found,
                do="train both with one tokenizer",
            )


def difference(one: Settings, two: Settings) -> str | None:
    """The first difference that changes what ids mean; None if there is none."""
    vocabularies = [t["model"].get("vocab") or {} for t in (one, two)]
    a, b = (v if isinstance(v, dict) else {str(token): i for i, token in enumerate(v)} for v in vocabularies)
    if len(a) != len(b):
        return f"{len(a)} and {len(b)} tokens"
    if a != b:
        token = min((t for t in a.keys() | b.keys() if a.get(t) != b.get(t)), key=lambda t: (a.get(t, len(a)), t))
        return f"token {token!r} is {a.get(token, 'absent')} and {b.get(token, 'absent')}"
    return next((f"{part} differs" for part in MEANING if one.get(part) != two.get(part)), None)


def require_same_vocabulary(sizes: dict[str, int]) -> None:
    """Rows of the output embedding of each expert, by name.

    Raises:
        RequestError: names two experts whose sizes differ.
    """
    (first, size), *others = sizes.items()
    for name, other in others:
        if other != size:
            raise RequestError(
                f"experts {first!r} and {name!r} have different vocabularies, so their probabilities cannot be mixed",
                expected=f"{size} tokens",
                found=f"{other} tokens",
                do="train both with one tokenizer",
            )
