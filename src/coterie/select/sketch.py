"""Sketches of documents: sets of word 5-grams, and band keys under which near-duplicates meet.

MinHash in b bands of r values: documents of Jaccard J share a band with probability 1 - (1 - J^r)^b. With 20 x 6, that is
0.997 at 0.8 and 0.92 at 0.7; the default, 40 x 5, gives 0.9994 at 0.7, since what is chosen should hold no pair at the
threshold. The b * r values come from r hash functions with b bins each (one-permutation hashing) instead of b * r functions:
a fraction of the work. Bins that stay empty in short documents borrow from others (Shrivastava 2017, "Optimal densification
for fast and accurate minwise hashing"), in an order that is the same for all documents.

`W` words, `S` shingles, `D` documents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt8, UInt32, UInt64

from coterie.select.words import Words, mixed

GRAM = 5
"""Words of a shingle. A shorter document is one shingle."""
BANDS, ROWS = 40, 5
_STEP = np.uint64(0xD6E8FEB86659FD93)
_EMPTY = np.uint32(0xFFFFFFFF)
_LOANS = 96
"""How often an empty bin looks elsewhere."""


@dataclass(frozen=True)
class Shingles:
    """The 5-grams of a batch, with repetitions."""

    hash_S: UInt64[np.ndarray, " S"]
    first_D1: Int64[np.ndarray, " D+1"]


def shingles(words: Words, gram: int = GRAM) -> Shingles:
    """The hash of every run of ``gram`` words of a document, of all its words where it has fewer."""
    h_W, first_D1 = words.hash_W, words.first_D1
    count_D = np.diff(first_D1)
    grams_D = np.where(count_D >= gram, count_D - gram + 1, np.minimum(count_D, 1))
    out_D1 = np.concatenate([[0], np.cumsum(grams_D)])
    if len(h_W) >= gram:
        whole = h_W[: len(h_W) - gram + 1].copy()
        for i in range(1, gram):
            whole = whole * _STEP + h_W[i : len(h_W) - gram + 1 + i]
    else:
        whole = h_W[:0]
    keep = np.ones(len(whole), dtype=bool)
    for i in range(gram - 1):  # a run that begins in the last four words of a document ends in the next one
        last = first_D1[1:] - 1 - i
        last = last[(last >= first_D1[:-1]) & (last < len(whole))]
        keep[last] = False
    hash_S = np.empty(out_D1[-1], dtype=np.uint64)
    long_D = count_D >= gram
    in_long_S = np.repeat(long_D, grams_D)
    hash_S[in_long_S] = whole[keep]
    for d in np.flatnonzero(~long_D & (count_D > 0)):
        value = np.uint64(count_D[d])
        for h in h_W[first_D1[d] : first_D1[d + 1]]:
            value = np.uint64((int(value) * int(_STEP) + int(h)) % 2**64)
        hash_S[out_D1[d]] = value
    return Shingles(mixed(hash_S), out_D1)


def values(made: Shingles, count: int = BANDS, rows: int = ROWS) -> UInt32[np.ndarray, "r D b"]:
    """The MinHash values of every document."""
    D, size_D = len(made.first_D1) - 1, np.diff(made.first_D1)
    base_S = np.repeat(np.arange(D, dtype=np.int64) * count, size_D)
    seeds = mixed(np.arange(1, rows + 1, dtype=np.uint64) * np.uint64(0xA0761D6478BD642F)) | np.uint64(1)
    least = np.full((rows, D * count), _EMPTY, dtype=np.uint32)
    for row, seed in zip(least, seeds, strict=True):
        spread = ((made.hash_S ^ (made.hash_S >> np.uint64(29))) * seed >> np.uint64(32)) * np.uint64(count)
        np.minimum.at(row, base_S + (spread >> np.uint64(32)).astype(np.int64), spread.astype(np.uint32))
    for row in least:
        _lend(row.reshape(D, count))
    return least.reshape(rows, D, count)


def bands(value_rDb: UInt32[np.ndarray, "r D b"]) -> UInt64[np.ndarray, "D b"]:
    """The band keys of every document; 0 throughout for a document without words."""
    _, D, b = value_rDb.shape
    key_Db = np.zeros((D, b), dtype=np.uint64)
    for value_Db in value_rDb:
        key_Db = mixed(key_Db * _STEP + value_Db)
    key_Db = mixed(key_Db + np.arange(1, b + 1, dtype=np.uint64))
    key_Db[(value_rDb[0] == _EMPTY).all(1)] = 0
    return key_Db


def short_values(value_rDb: UInt32[np.ndarray, "r D b"]) -> UInt8[np.ndarray, "D rb"]:
    """One byte of each value: the share of equal bytes estimates the similarity of two documents (b-bit MinHash, Li and
    Konig 2010), well enough to leave most pairs that only share a band uncompared."""
    r, D, b = value_rDb.shape
    return np.moveaxis(value_rDb, 0, 1).reshape(D, r * b).astype(np.uint8)


def _lend(least_Db: np.ndarray) -> None:
    """Fill empty bins from others of the document, in place."""
    short = np.flatnonzero((least_Db == _EMPTY).any(1))
    if len(short):
        count = least_Db.shape[1]
        first = (mixed(np.arange(1, _LOANS + 1, dtype=np.uint64)) % np.uint64(count)).astype(np.int64)
        own = least_Db[short]
        full = own.copy()
        for loan in (first[:, None] + np.arange(count)) % count:
            empty = full == _EMPTY
            if not empty.any():
                break
            full = np.where(empty, own[:, loan], full)
        least_Db[short] = full


def jaccard(a: UInt64[np.ndarray, " A"], b: UInt64[np.ndarray, " B"]) -> float:
    """Of two sets of shingles, each sorted and without repetitions."""
    if not len(a) or not len(b):
        return 0.0
    at = np.searchsorted(a, b)
    both = int((a[np.minimum(at, len(a) - 1)] == b).sum())
    return both / (len(a) + len(b) - both)


def chance(similarity: Float64[np.ndarray, " J"], count: int = BANDS, rows: int = ROWS) -> Float64[np.ndarray, " J"]:
    """Probability that two documents of a Jaccard similarity share a band: the S-curve."""
    return 1 - (1 - np.asarray(similarity, dtype=float) ** rows) ** count
