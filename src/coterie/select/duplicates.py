"""Near-duplicates: documents that share a band are compared word run by word run; the better one of a pair stays.

Documents are taken from the best to the worst. One is dropped if it is like one that already stays, and the pair is logged;
so what stays holds no pair above the threshold that the bands found, and nothing is dropped for being like something that
was dropped itself (which is what joining pairs into components does). Documents of other splits stay whatever happens:
training text that repeats them goes.

`n` documents in the order of preference, the best first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, UInt8, UInt64

from coterie.select.sketch import BANDS, ROWS, bands, chance, jaccard, shingles, values
from coterie.select.words import mixed, words

Bands = Callable[[int], UInt64[np.ndarray, " n"]]
"""The keys of one band, of all documents."""
Shorts = Callable[[Sequence[int]], UInt8[np.ndarray, "k rb"]]
"""The short MinHash values of some documents."""
Texts = Callable[[Sequence[int]], list[str]]
"""The texts of some documents."""
_REMEMBERED = 8_000
"""Sets of shingles that are kept in memory."""
_DOUBT = 0.15
"""How far an estimate from short values is trusted: four standard deviations of 200 values at a similarity of 0.6."""
_MARGIN = 0.1
"""Pairs this far below the threshold are logged too, as what nearly counted."""


@dataclass
class Found:
    """The outcome."""

    dropped: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Of each document that goes: the one it is like, which stays, and how like."""
    near: list[tuple[int, int, float]] = field(default_factory=list)
    """Compared pairs somewhat below the threshold."""
    compared: int = 0


def near_duplicates(
    band: Bands,
    shorts: Shorts,
    texts: Texts,
    n: int,
    threshold: float,
    fixed_n: Bool[np.ndarray, " n"] | None = None,
    count: int = BANDS,
) -> Found:
    """Find what goes.

    Args:
        band: keys of one band for documents in the order of preference; 0 means none.
        shorts: short MinHash values of some of these documents; pairs that they show to be unlike are not compared.
        texts: reads some of these documents.
        threshold: Jaccard similarity of their word 5-grams from which two documents count as one.
        fixed_n: documents that stay; they must come first.
        count: number of bands.
    """
    bucket_of, rows_of = _buckets(band, n, count)
    found = Found()
    staying: dict[int, list[int]] = {}
    shingles_of = lru_cache(_REMEMBERED)(lambda row: shingle_sets(texts([row]))[0])
    for row, start, end in rows_of.tolist():
        mine = bucket_of[start:end].tolist()
        fixed = fixed_n is not None and bool(fixed_n[row])
        if not fixed:
            candidates = list(dict.fromkeys(other for b in mine for other in staying.get(b, ())))
            if candidates:
                short = np.asarray(shorts([row, *candidates]))
                likely = (short[1:] == short[0]).mean(1) >= threshold - _MARGIN - _DOUBT
                candidates = [c for c, yes in zip(candidates, likely, strict=True) if yes]
            for other in candidates:
                found.compared += 1
                likeness = jaccard(shingles_of(other), shingles_of(row))
                if likeness >= threshold:
                    found.dropped[row] = other, likeness
                    break
                if likeness >= threshold - _MARGIN:
                    found.near.append((other, row, likeness))
        if row not in found.dropped:
            for b in mine:
                staying.setdefault(b, []).append(row)
    return found


def _buckets(band: Bands, n: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents that share a band with another: numbers of their shared bands, and (document, start, end) in order."""
    rows, numbers, base = [], [], 0
    for b in range(count):
        key = band(b)
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        new = np.concatenate([[True], ordered[1:] != ordered[:-1]]) if n else np.zeros(0, bool)
        number = np.cumsum(new) - 1
        size = np.bincount(number, minlength=1) if n else np.zeros(1, np.int64)
        shared = (size[number] > 1) & (ordered != 0) if n else new
        rows.append(order[shared])
        numbers.append(number[shared] + base)
        base += n
    row, number = np.concatenate(rows), np.concatenate(numbers)
    order = np.argsort(row, kind="stable")
    row, number = row[order], number[order]
    distinct, start = np.unique(row, return_index=True)
    return number, np.stack([distinct, start, np.append(start, len(row))[1:]], 1).astype(np.int64)


def shingle_sets(texts: Sequence[str]) -> list[np.ndarray]:
    """The set of word 5-grams of each text, sorted."""
    out: list[np.ndarray] = []
    for start in range(0, len(texts), 128):
        made = shingles(words(texts[start : start + 128]))
        out += [np.unique(made.hash_S[a:b]) for a, b in zip(made.first_D1[:-1], made.first_D1[1:], strict=True)]
    return out


def planted_recall(texts: Sequence[str], seed: int, count: int = BANDS, rows: int = ROWS) -> list[dict[str, float]]:
    """Recall measured on copies of these texts whose words were changed here and there: for each band of similarity, how
    many of the copies meet their original, and how many are expected to by the closed form."""
    pairs: list[tuple[float, bool]] = []
    for number, text in enumerate(texts):
        split = text.split()
        if len(split) < 30:
            continue
        noise = mixed(np.arange(len(split), dtype=np.uint64) + mixed(np.array([seed * 1009 + number], dtype=np.uint64)))
        for rate in (0.01, 0.022, 0.04, 0.06):
            changed = [w if z >= rate else f"{w}x{number}" for w, z in zip(split, noise / 2.0**64, strict=True)]
            found = shingles(words([text, " ".join(changed)]))
            key = bands(values(found, count, rows))
            first, second = (
                np.unique(found.hash_S[a:b]) for a, b in zip(found.first_D1[:-1], found.first_D1[1:], strict=True)
            )
            pairs.append((jaccard(first, second), bool((key[0] == key[1]).any())))
    table = []
    for low in (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9):
        inside = [(j, hit) for j, hit in pairs if low <= j < low + (0.1 if low < 0.7 else 0.05)]
        if inside:
            expected = float(np.mean(chance(np.array([j for j, _ in inside]), count, rows)))
            figures = {"jaccard": low, "pairs": len(inside), "recall": round(sum(h for _, h in inside) / len(inside), 4)}
            table.append({**figures, "expected": round(expected, 4)})
    return table
