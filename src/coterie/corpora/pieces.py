"""Documents become token ids, and the ids are cut into pieces that fit a sequence.

A document is [bos] ids [eos]. What is longer than a sequence is cut into pieces that overlap by one token, so that every
token but the first is a target exactly once. A prompt is no target; it is cut from its left until prompt and response fit,
or to a quarter of the sequence where the response alone does not fit.

The ids stay on disk: there may be more of them than memory. (`P` pieces, `D` documents.)
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from coterie.store import Artifact


class Encoder:
    """A tokenizer's ids of plain text, without the `transformers` library."""

    def __init__(self, tokenizer: Artifact) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(tokenizer.file("tokenizer.json")))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # "<|endoftext|>" written in a document is text, not the end of one
        self.bos, self.eos = tokenizer.facts["bos_id"], tokenizer.facts["eos_id"]

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
        self._start, self._length, self._first_target, self._document = array("q"), array("q"), array("q"), array("q")
        self._targets = array("q")

    def add(self, table: pa.Table, encode: Encoder) -> None:
        """Tokenize documents (``prompt``, ``text``) and cut them, until the limit is reached."""
        prompts = table["prompt"].to_pylist()
        prompt_ids: Sequence[list[int]] = encode([p or "" for p in prompts]) if any(prompts) else [[]] * len(prompts)
        ids, taken = array("i"), 0
        for prompt, text in zip(prompt_ids, encode(table["text"].to_pylist()), strict=True):
            room = self.capacity - 2 - len(text)
            if room < 0:
                room = self.capacity // 4
            cut = max(len(prompt) - room, 0)
            begin = len(ids)
            ids.append(encode.bos)
            ids.extend(prompt[cut:])
            given = len(ids) - begin
            ids.extend(text)
            ids.append(encode.eos)
            if self._cut(self._stored + begin, len(ids) - begin, given):
                self.cut_prompt_tokens += cut
                taken += 1
            if self.full:
                break
        with self.path.open("ab") as file:
            ids.tofile(file)
        self._stored += len(ids)
        self.tables.append(table.slice(0, taken))

    def _cut(self, begin: int, size: int, given: int) -> bool:
        """Cut one document of ``size`` tokens, the first ``given`` of which are no targets. Whether any of it was taken."""
        targets = 0
        for offset in range(0, size - 1, self.capacity - 1):
            length = min(self.capacity, size - offset, self._left)
            first = max(1, given - offset)
            if length <= first:  # no room left for a target
                self.full = True
                break
            for column, value in (
                (self._start, begin + offset),
                (self._length, length),
                (self._first_target, first),
                (self._document, len(self._targets)),
            ):
                column.append(value)
            targets += length - first
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
    def start_P(self) -> Int64[np.ndarray, " P"]:
        """Where in ``ids`` each piece begins."""
        return np.frombuffer(self._start, dtype=np.int64)

    @property
    def length_P(self) -> Int64[np.ndarray, " P"]:
        """Tokens of each piece."""
        return np.frombuffer(self._length, dtype=np.int64)

    @property
    def first_target_P(self) -> Int64[np.ndarray, " P"]:
        """Position of each piece's first target."""
        return np.frombuffer(self._first_target, dtype=np.int64)

    @property
    def document_P(self) -> Int64[np.ndarray, " P"]:
        """Row of ``tables`` that each piece is cut from."""
        return np.frombuffer(self._document, dtype=np.int64)

    @property
    def targets_D(self) -> Int64[np.ndarray, " D"]:
        """Targets of each document."""
        return np.frombuffer(self._targets, dtype=np.int64)
