"""What is measured of every text: length, readability, richness of the vocabulary, repetition, completeness; and one
quality.

All of it is a function of the text alone, so that shards profiled apart agree. Definitions:

- *Flesch reading ease* (Flesch 1948): 206.835 - 1.015 words/sentence - 84.6 syllables/word. A sentence ends with `.`, `!` or
  `?` before white space; syllables are groups of vowels, a silent final `e` not counted, at least one a word.
- *richness*: log(distinct words) / log(words) (Herdan 1960), which depends little on length.
- *repetition*: share of the word 5-grams that occurred before in the document.
- *complete*: begins like a sentence or a heading, and ends with a closing mark.
- *quality* in [0, 1]: mean of readability (1 from 30 to 80, falling to 0 at -20 and 130), richness (0 at 0.7, 1 at 0.9),
  no repetition (0 at a share of 0.5), completeness (1 or 0). It is a default, not a truth: name a column or plug in a
  scorer.

`B` bytes, `W` words, `D` documents.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from coterie.select.sketch import Shingles
from coterie.select.words import LONGEST, Words, table

BUCKETS = 1 << 16
"""Hashed terms."""
COUNTED = ("chars", "words", "marks", "wide")
"""Columns that tokens are estimated from."""
ESTIMATE = (0.1334, 0.3344, 0.8698, 1.0218)
"""Tokens of a text from its characters, words, punctuation marks and bytes above 0x7F: GPT-2's tokenizer on English prose.
Mean error 5.5 % (five-fold, on 2,964 documents); other tokenizers and languages need a fit of their own (`tokens:`)."""
_VOWEL, _STOP, _SPACE = table(b"aeiouy"), table(b".!?"), table(b" \t\r\n\"')")
_MARK = table(bytes(c for c in range(0x21, 0x7F) if not chr(c).isalnum() and chr(c) != "_"))
_CLOSING = ".!?:;\"'”’»)]}>|`*_…。！？"


def measure(texts: Sequence[str], words: Words, made: Shingles) -> dict[str, np.ndarray]:
    """The columns of the profile for one batch; the sparse term counts are made by ``terms``."""
    D = words.documents
    bounds = words.bounds_D1

    def counted(flag_B: np.ndarray) -> Float64[np.ndarray, " D"]:
        return np.diff(np.searchsorted(np.flatnonzero(flag_B), bounds)).astype(float)

    n_D = np.diff(words.first_D1).astype(float)
    stops_B = _STOP[words.raw_B]
    stops_B[:-1] &= _SPACE[words.raw_B[1:]]
    sentences_D = np.maximum(counted(stops_B), 1)
    syllables_D = np.diff(np.concatenate([[0], np.cumsum(_syllables(words))])[words.first_D1]).astype(float)
    marks_D = counted(_MARK[words.raw_B])
    wide_D = counted(words.raw_B >= 0x80)
    bytes_D = np.diff(bounds) - 1.0
    chars_D = np.array([len(t) for t in texts], dtype=float)
    seen_D = np.minimum(bytes_D, LONGEST)
    scale_D = np.where(bytes_D >= LONGEST, chars_D / np.maximum(seen_D, 1), 1.0)
    per = np.maximum(n_D, 1)
    flesch_D = np.where(n_D > 0, 206.835 - 1.015 * n_D / sentences_D - 84.6 * syllables_D / per, 0.0)
    size_D = np.diff(made.first_D1)
    order = np.repeat(np.arange(D), size_D)
    distinct_D = _distinct(made.hash_S, order, D)
    repetition_D = np.where(size_D > 0, 1 - distinct_D / np.maximum(size_D, 1), 0.0)
    vocabulary_D = _distinct(words.hash_W, words.document_W, D)
    richness_D = np.where(n_D > 1, np.log(np.maximum(vocabulary_D, 1)) / np.log(np.maximum(n_D, 2)), 1.0)
    complete_D = np.array([_complete(t) for t in texts])
    columns = {
        "chars": chars_D.astype(np.int64),
        "words": (n_D * scale_D).astype(np.int64),
        "sentences": (sentences_D * scale_D).astype(np.int64),
        "marks": (marks_D * scale_D).astype(np.int64),
        "wide": (wide_D * scale_D).astype(np.int64),
        "flesch": flesch_D.astype(np.float32),
        "richness": richness_D.astype(np.float32),
        "repetition": repetition_D.astype(np.float32),
        "complete": complete_D,
    }
    columns["tokens"] = estimated(columns, ESTIMATE)
    return columns | {"quality": quality(flesch_D, richness_D, repetition_D, complete_D).astype(np.float32)}


def estimated(columns: dict[str, np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Tokens of each document, at least 1."""
    parts = (columns[name] * w for name, w in zip(COUNTED, weights, strict=True))
    return np.maximum(1, np.rint(sum(parts))).astype(np.int64)


def quality(flesch: np.ndarray, richness: np.ndarray, repetition: np.ndarray, complete: np.ndarray) -> np.ndarray:
    """One figure in [0, 1]; see above."""
    readable = 1 - np.clip(np.maximum(30 - flesch, flesch - 80) / 50, 0, 1)
    rich = np.clip((richness - 0.7) / 0.2, 0, 1)
    fresh = 1 - np.clip(repetition / 0.5, 0, 1)
    return (readable + rich + fresh + complete) / 4


def terms(words: Words) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashed term counts: (terms of each document [D], bucket [n] u16, count [n] u8, at most 255), by document and bucket.

    Words of one letter and numbers are no terms."""
    first = words.lower_B[words.start_W]
    use = (words.end_W - words.start_W > 1) & ((first < 0x30) | (first > 0x39))
    key = (words.document_W[use].astype(np.uint64) << np.uint64(16)) | (words.hash_W[use] >> np.uint64(48))
    key.sort()
    new = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.zeros(0, np.int64)
    count = np.diff(np.append(new, len(key)))
    term_of = (key[new] >> np.uint64(16)).astype(np.int64)
    bucket = (key[new] & np.uint64(0xFFFF)).astype(np.uint16)
    return np.bincount(term_of, minlength=words.documents), bucket, np.minimum(count, 255).astype(np.uint8)


def _syllables(words: Words) -> np.ndarray:
    """Of each word."""
    vowel_B = _VOWEL[words.lower_B]
    group_B = vowel_B.copy()
    group_B[1:] &= ~vowel_B[:-1]
    upto_B = np.cumsum(group_B, dtype=np.int32)
    count = upto_B[words.end_W - 1] - upto_B[words.start_W - 1]
    last = words.end_W - 1
    silent = (words.lower_B[last] == 0x65) & ~vowel_B[last - 1] & (count > 1)
    return np.maximum(count - silent, 1)


def _distinct(hash_: np.ndarray, document: np.ndarray, D: int) -> np.ndarray:
    """Distinct hashes of each document; 48 bits of them are compared."""
    key = (document.astype(np.uint64) << np.uint64(48)) | (hash_ >> np.uint64(16))
    key.sort()
    if not len(key):
        return np.zeros(D)
    new = np.concatenate([[True], key[1:] != key[:-1]])
    return np.bincount((key[new] >> np.uint64(48)).astype(np.int64), minlength=D).astype(float)


def _complete(text: str) -> bool:
    first, last = text.lstrip()[:1], text.rstrip()[-1:]
    return bool(first) and not first.islower() and last in _CLOSING
