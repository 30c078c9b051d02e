"""Documents become token ids, the ids are cut into pieces that fit a sequence, and the pieces are packed.

A document is [bos] ids [eos]. What is longer than a sequence is cut into pieces that overlap by one token, so that every
token but the first is a target exactly once. A prompt is no target; it is cut from its left until prompt and response fit,
or to a quarter of the sequence where the response alone does not fit. A conversation is what the chat template makes of it,
without [bos] and [eos] of ours; the assistant's words are its targets, and a longer one is cut from its left.

Pieces are packed by best-fit decreasing, the longest first, each into the fullest sequence that still has room: at most 11/9
of the fewest possible sequences plus one, and for texts nearly always the fewest. Rooms are kept by size, with one bit for
each size that is in use, so finding the best room is a shift of one integer and not a search.

The ids stay on disk: there may be more of them than memory. (`P` pieces, `D` documents.)
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from coterie.corpora.conversations import COLUMN, Renderer
from coterie.store import Artifact

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def plain_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer that neither cuts nor pads."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


class Encoder:
    """A tokenizer's ids of plain text, without the `transformers` library."""

    def __init__(self, tokenizer: Artifact) -> None:
        self._tokenizer = plain_tokenizer(tokenizer.file("tokenizer.json"))
        self._tokenizer.encode_special_tokens = True  # "<|endoftext|>" written in a document is text, not the end of one
        self.bos, self.eos = tokenizer.facts["bos_id"], tokenizer.facts["eos_id"]

        self._folder = tokenizer.path

    @cached_property
    def _renderer(self) -> Renderer:
        from transformers import AutoTokenizer

        return Renderer(AutoTokenizer.from_pretrained(self._folder, trust_remote_code=False))

    def documents(self, table: pa.Table, capacity: int) -> Iterator[tuple[list[int], int, int]]:
        """Of each document its ids, the first of which are given (how many), and how many of its prompt were cut away. Of a
        conversation, ids that are given are negative: ``~id``."""
        if COLUMN in table.column_names:
            for turns in table[COLUMN].to_pylist():
                ids, learned = self._renderer.tokens(json.loads(turns))
                cut = max(len(ids) - capacity, 0)
                yield [i if own else ~i for i, own in zip(ids[cut:], learned[cut:], strict=True)], 0, cut
            return
        prompts = table["prompt"].to_pylist()
        prompt_ids: Sequence[list[int]] = self([p or "" for p in prompts]) if any(prompts) else [[]] * len(prompts)
        for prompt, text in zip(prompt_ids, self(table["text"].to_pylist()), strict=True):
            room = capacity - 2 - len(text)
            if room < 0:
                room = capacity // 4
            cut = max(len(prompt) - room, 0)
            yield [self.bos, *prompt[cut:], *text, self.eos], 1 + len(prompt) - cut, cut

    def __call__(self, texts: list[str]) -> list[list[int]]:
        return [found.ids for found in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


class Pieces:
    """What is to be packed.

    Args:
        path: a file for the ids.
        capacity: tokens of a sequence.
        limit: stop when the pieces hold so many tokens.
    """

    def __init__(self, path: Path, capacity: int, limit: int | None) -> None:
        self.path, self.capacity = path, capacity
        self.tokens, self.full = 0, False
        self.cut_prompt_tokens = self.cut_documents = 0
        self.tables: list[pa.Table] = []
        """The documents that were taken."""
        self._left = limit if limit is not None else 1 << 62
        self._stored = 0
        self._cuts = array("q")
        self._targets = array("q")

    def add(self, table: pa.Table, encode: Encoder) -> None:
        """Tokenize documents (``prompt``, ``text``) and cut them, until the limit is reached."""
        ids, taken = array("i"), 0
        for document, given, cut in encode.documents(table, self.capacity):
            begin = len(ids)
            ids.extend(document)
            if self._cut(self._stored + begin, document, given):
                self.cut_prompt_tokens += cut
                taken += 1
            if self.full:
                break
        with self.path.open("ab") as file:
            ids.tofile(file)
        self._stored += len(ids)
        self.tables.append(table.slice(0, taken))

    def _cut(self, begin: int, ids: Sequence[int], given: int) -> bool:
        """Cut one document; the first ``given`` of its tokens are no targets, nor are negative ones. Whether any is."""
        targets, size = 0, len(ids)
        for offset in range(0, size - 1, self.capacity - 1):
            length = min(self.capacity, size - offset, self._left)
            first = max(1, given - offset)
            if length <= first:  # no room left for a target
                self.full = True
                break
            self._cuts.extend((begin + offset, length, first, len(self._targets)))
            part = ids[offset + first : offset + length]
            targets += sum(i >= 0 for i in part) if min(part) < 0 else len(part)
            self.tokens += length
            self._left -= length
        self.full = self.full or self._left < 2
        if targets:
            self._targets.append(targets)
            self.cut_documents += size > self.capacity
        return targets > 0

    @property
    def ids(self) -> np.ndarray:
        return np.memmap(self.path, np.int32, "r")

    @property
    def cut_P4(self) -> Int64[np.ndarray, "P 4"]:
        """Of each piece: where in ``ids`` it begins, its length, the position of its first target, its row of ``tables``."""
        return np.frombuffer(self._cuts, dtype=np.int64).reshape(-1, 4)

    @property
    def targets_D(self) -> Int64[np.ndarray, " D"]:
        """Targets of each document."""
        return np.frombuffer(self._targets, dtype=np.int64)


def pack(length_P: Int64[np.ndarray, " P"], capacity: int) -> Int64[np.ndarray, " P"]:
    """The sequence of every piece.

    Args:
        length_P: tokens of each piece, 1 to ``capacity``.
        capacity: tokens of a sequence.

    Returns:
        Sequence numbers. Sequences are numbered by their earliest piece, so the numbering follows the pieces' order.
        Equal input gives equal output.
    """
    assert len(length_P) == 0 or (length_P.min() >= 1 and length_P.max() <= capacity)
    rooms: list[list[int]] = [[] for _ in range(capacity + 1)]
    in_use = 0
    sequence_P = np.empty(len(length_P), dtype=np.int64)
    count = 0
    for piece in np.argsort(-length_P, kind="stable").tolist():
        length = int(length_P[piece])
        fitting = in_use >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            sequence = rooms[room].pop()
            if not rooms[room]:
                in_use &= ~(1 << room)
        else:
            room, sequence, count = capacity, count, count + 1
        sequence_P[piece] = sequence
        if left := room - length:
            rooms[left].append(sequence)
            in_use |= 1 << left
    _, first, inverse = np.unique(sequence_P, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]
