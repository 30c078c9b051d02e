"""Words of many documents at once: one pass of numpy over the bytes of a batch, no loop over words in Python.

A word is a run of letters, digits and underscores, compared without case; in scripts that write no spaces (Chinese,
Japanese, Korean) every character is a word. A word is known by a 64-bit hash: the polynomial of its bytes, taken from one
running sum over the batch, then mixed. Everything else that the profile needs of a text (shingles, term counts, vocabulary)
is made from these hashes, so that the text is read once. The price: bytes above 0x7F are letters unless they belong to the
general punctuation of Unicode, so other rare punctuation sticks to its word.

`B` bytes of a batch, `W` words, `D` documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt64

LONGEST = 4 << 20
"""Bytes of a document that are looked at; what lies behind them counts in its length only."""
_BASE = np.uint64(0x9E3779B97F4A7C15)
_INVERSE = np.uint64(pow(int(_BASE), -1, 2**64))


def table(characters: bytes) -> Bool[np.ndarray, "256"]:
    """Which bytes are among some."""
    found = np.zeros(256, dtype=bool)
    found[list(characters)] = True
    return found


_LETTERS = bytes(range(0x30, 0x3A)) + bytes(range(0x41, 0x5B)) + b"_" + bytes(range(0x61, 0x7B))
_IN_WORD = table(_LETTERS + bytes(range(0x80, 0x100)))
_LOWER = np.arange(256, dtype=np.uint8)
_LOWER[0x41:0x5B] += 32


@dataclass(frozen=True)
class Words:
    """The words of a batch."""

    lower_B: UInt8[np.ndarray, " B"]
    """The bytes, ASCII in lower case, a line break after each document."""
    raw_B: UInt8[np.ndarray, " B"]
    bounds_D1: Int64[np.ndarray, " D+1"]
    """Where each document starts, and where the last one ends."""
    start_W: Int64[np.ndarray, " W"]
    end_W: Int64[np.ndarray, " W"]
    hash_W: UInt64[np.ndarray, " W"]
    first_D1: Int64[np.ndarray, " D+1"]
    """First word of each document; behind them the number of words."""

    @property
    def documents(self) -> int:
        return len(self.bounds_D1) - 1

    @property
    def document_W(self) -> Int64[np.ndarray, " W"]:
        return np.repeat(np.arange(self.documents), np.diff(self.first_D1))

    def spelled(self, word: int) -> str:
        """One word, in lower case."""
        return bytes(self.lower_B[self.start_W[word] : self.end_W[word]]).decode(errors="replace")


def words(texts: Sequence[str]) -> Words:
    """Find the words of some documents."""
    parts = [text.encode(errors="replace")[:LONGEST] for text in texts]
    raw_B = np.frombuffer(b"\n" + b"\n".join(parts) + b"\n", dtype=np.uint8)
    lower_B = _LOWER[raw_B]
    bounds_D1 = np.concatenate([[1], 1 + np.cumsum([len(p) + 1 for p in parts], dtype=np.int64)])
    inside_B = _IN_WORD[raw_B]
    begins_B = None
    if (raw_B >= 0xC2).any():
        begins_B = _beyond_ascii(raw_B, inside_B)
    if begins_B is None:
        edges = np.flatnonzero(inside_B[1:] != inside_B[:-1]) + 1
        start_W, end_W = edges[::2], edges[1::2]
    else:
        start_W = np.flatnonzero(inside_B[1:] & (~inside_B[:-1] | begins_B[1:])) + 1
        end_W = np.flatnonzero(inside_B[:-1] & (~inside_B[1:] | begins_B[1:])) + 1
    power, inverse = _powers(len(raw_B))
    sum_B = np.cumsum(lower_B * power)
    hash_W = mixed((sum_B[end_W - 1] - sum_B[start_W - 1]) * inverse[start_W])
    return Words(lower_B, raw_B, bounds_D1, start_W, end_W, hash_W, np.searchsorted(start_W, bounds_D1))


def _beyond_ascii(raw_B: np.ndarray, inside_B: np.ndarray) -> np.ndarray | None:
    """Take punctuation of two and three bytes out of the words; where single characters are words, say where they begin."""
    for lead, second, width in ((0xE2, (0x80, 0x81), 3), (0xC2, range(0xA0, 0xC0), 2), (0xE3, (0x80,), 3)):
        at = np.flatnonzero(raw_B[:-2] == lead)
        at = at[np.isin(raw_B[at + 1], list(second))]
        for i in range(width):
            inside_B[at + i] = False
    alone_B = (raw_B >= 0xE3) & (raw_B <= 0xED) & inside_B
    if not alone_B.any():
        return None
    begins_B = alone_B.copy()
    begins_B[np.minimum(np.flatnonzero(alone_B) + 3, len(raw_B) - 1)] = True  # what follows such a character begins anew
    return begins_B


def mixed(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """Spread every bit over all 64 (the finalizer of splitmix64; a bijection)."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


@cache
def _grown(size: int) -> tuple[np.ndarray, np.ndarray]:
    tables = []
    for base in (_BASE, _INVERSE):
        steps = np.full(size, base, dtype=np.uint64)
        steps[0] = 1
        tables.append(np.multiply.accumulate(steps))
    return tables[0], tables[1]


def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of the base and of its inverse, modulo 2^64."""
    room = max(1 << 16, 1 << (size - 1).bit_length())
    power, inverse = _grown(room)
    return power[:size], inverse[:size]


def batches(texts: Iterable[str], limit: int) -> Iterator[list[str]]:
    """Group texts so that a group holds about ``limit`` characters."""
    group: list[str] = []
    total = 0
    for text in texts:
        if group and total + len(text) > limit:
            yield group
            group, total = [], 0
        group.append(text)
        total += len(text)
    if group:
        yield group
