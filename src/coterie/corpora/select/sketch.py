"""Sketches of documents: sets of word 5-grams, and 20 band keys under which near-duplicates meet.

MinHash with 120 values in 20 bands of 6: documents of Jaccard 0.8 share a band with probability 0.997, of 0.7 with 0.92, of
0.3 with 0.015. The 120 values come from 6 hash functions with 20 bins each (one-permutation hashing) instead of 120
functions: a twentieth of the work. Bins that stay empty in short documents borrow from others (Shrivastava 2017, "Optimal
densification for fast and accurate minwise hashing"), in an order that is the same for all documents.

`W` words, `S` shingles, `D` documents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from coterie.corpora.select.words import Words, mixed

GRAM = 5
"""Words of a shingle. A shorter document is one shingle."""
BANDS, ROWS = 20, 6
_STEP = np.uint64(0xD6E8FEB86659FD93)
_SEEDS = mixed(np.arange(1, ROWS + 1, dtype=np.uint64) * np.uint64(0xA0761D6478BD642F)) | np.uint64(1)
_EMPTY = np.uint32(0xFFFFFFFF)
_LOANS = (mixed(np.arange(1, 97, dtype=np.uint64)) % np.uint64(BANDS)).astype(np.int64).reshape(-1, 1) + np.arange(BANDS)
"""Where an empty bin looks, attempt by attempt."""


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


def bands(made: Shingles) -> UInt64[np.ndarray, "D 20"]:
    """The band keys of every document; 0 throughout for a document without words."""
    D = len(made.first_D1) - 1
    size_D = np.diff(made.first_D1)
    base_S = np.repeat(np.arange(D, dtype=np.int64) * BANDS, size_D)
    key_DB = np.zeros((D, BANDS), dtype=np.uint64)
    for seed in _SEEDS:
        spread = ((made.hash_S ^ (made.hash_S >> np.uint64(29))) * seed >> np.uint64(32)) * np.uint64(BANDS)
        bin_S = base_S + (spread >> np.uint64(32)).astype(np.int64)
        least = np.full(D * BANDS, _EMPTY, dtype=np.uint32)
        np.minimum.at(least, bin_S, spread.astype(np.uint32))
        key_DB = mixed(key_DB * _STEP + _lent(least.reshape(D, BANDS)))
    key_DB = mixed(key_DB + np.arange(1, BANDS + 1, dtype=np.uint64))
    key_DB[size_D == 0] = 0
    return key_DB


def _lent(least_DB: np.ndarray) -> np.ndarray:
    """Fill empty bins from others of the document."""
    short = np.flatnonzero((least_DB == _EMPTY).any(1))
    if len(short):
        own = least_DB[short]
        full = own.copy()
        for loan in _LOANS % BANDS:
            empty = full == _EMPTY
            if not empty.any():
                break
            full = np.where(empty, own[:, loan], full)
        least_DB[short] = full
    return least_DB.astype(np.uint64)


def jaccard(a: UInt64[np.ndarray, " A"], b: UInt64[np.ndarray, " B"]) -> float:
    """Of two sets of shingles, each sorted and without repetitions."""
    if not len(a) or not len(b):
        return 0.0
    at = np.searchsorted(a, b)
    both = int((a[np.minimum(at, len(a) - 1)] == b).sum())
    return both / (len(a) + len(b) - both)


def chance(similarity: Float64[np.ndarray, " J"]) -> Float64[np.ndarray, " J"]:
    """Probability that two documents of a Jaccard similarity share a band: the S-curve of 20 x 6."""
    return 1 - (1 - np.asarray(similarity, dtype=float) ** ROWS) ** BANDS
