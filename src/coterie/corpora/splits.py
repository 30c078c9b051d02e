"""Which split a document belongs to, in which order documents are taken, and which ones a limit keeps.

All of it follows from hashes of content (or of a group), without a salt: adding, removing or reordering other rows moves
nothing, and equal content in two corpora without groups falls into the same split. The price: shares are met on average,
not exactly. (`D` documents.)
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8, UInt64

from coterie.corpora.corpus_settings import Documents, Limit, Split

SPLITS = ("train", "valid", "test")
"""In the order of their numbers."""


def content_hash(prompt: str | None, text: str) -> bytes:
    """sha256 of prompt and text, NFC-normalised, runs of white space as one space: two documents with one content hash
    are the same document to a reader."""
    whole = text if prompt is None else f"{prompt}\n{text}"
    if not unicodedata.is_normalized("NFC", whole):
        whole = unicodedata.normalize("NFC", whole)
    return hashlib.sha256(" ".join(whole.split()).encode()).digest()


def order_of(content: bytes) -> int:
    """Place in the order of documents: the first 8 bytes of the content hash."""
    return int.from_bytes(content[:8], "big")


def assign(content: Sequence[bytes], groups: Sequence[str | None] | None, split: Split) -> UInt8[np.ndarray, " D"]:
    """The split of every document, as an index into ``SPLITS``.

    With groups, a group stays together, and so do groups that share a content: documents and groups are joined into
    connected components, and the hash of a component's first group (by name) decides. A document whose group is null is
    a group of its own content.
    """
    if groups is None:
        deciding = [c[8:16] for c in content]
    else:
        names = [g.encode() if g is not None else c for g, c in zip(groups, content, strict=True)]
        roots = _components(content, names)
        first: dict[int, bytes] = {}
        for root, name in zip(roots, names, strict=True):
            first[root] = min(first.get(root, name), name)
        of_root = {root: hashlib.sha256(name).digest()[8:16] for root, name in first.items()}
        deciding = [of_root[root] for root in roots]
    share_D = np.frombuffer(b"".join(deciding), dtype=">u8").astype(np.float64) / 2**64
    return np.where(share_D < split.test, 2, np.where(share_D < split.test + split.valid, 1, 0)).astype(np.uint8)


def _components(content: Sequence[bytes], names: Sequence[bytes]) -> list[int]:
    """The connected component of each document, joined by what shares a content or a group: the same number for one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    ends = [np.unique(np.array(found, dtype=object), return_inverse=True)[1] for found in (content, names)]
    D = len(names)
    edges = coo_matrix((np.ones(D), (ends[0], ends[1] + D)), shape=(2 * D, 2 * D))
    return connected_components(edges, directed=False)[1][ends[1] + D].tolist()


def within(
    order_D: UInt64[np.ndarray, " D"], split_D: UInt8[np.ndarray, " D"], limit: Limit | None
) -> Bool[np.ndarray, " D"]:
    """Which documents a limit on share or rows keeps: the first ones in order, of each split its share.

    A split that has documents keeps at least one as long as there are rows to give.
    """
    keep_D = np.ones(len(order_D), dtype=bool)
    if limit is None or limit.tokens is not None:
        return keep_D
    sizes = np.bincount(split_D, minlength=len(SPLITS))
    if limit.share is not None:
        quotas = np.ceil(sizes * limit.share).astype(int)
    else:
        quotas = _shares(sizes, int(limit.rows or 0))
    keep_D[:] = False
    for split, quota in enumerate(quotas):
        members = np.flatnonzero(split_D == split)
        keep_D[members[np.argsort(order_D[members], kind="stable")[:quota]]] = True
    return keep_D


def _shares(sizes: np.ndarray, total: int) -> np.ndarray:
    """``total`` divided in proportion to ``sizes`` by largest remainder, at least 1 each while it lasts."""
    total = min(total, int(sizes.sum()))
    exact = sizes * total / max(int(sizes.sum()), 1)
    least = np.minimum(sizes, 1) if total >= np.count_nonzero(sizes) else np.zeros_like(sizes)
    quotas = np.maximum(np.floor(exact).astype(int), least)
    while (extra := int(quotas.sum()) - total) != 0:
        owed = exact - quotas
        if extra > 0:
            quotas[np.argmin(np.where(quotas > least, owed, np.inf))] -= 1
        else:
            quotas[np.argmax(np.where(quotas < sizes, owed, -np.inf))] += 1
    return quotas


def split_tokens(corpus: Documents, split: str) -> int | None:
    """The part of a token limit that falls to a split: `limit.tokens` is over all splits."""
    if corpus.limit is None or corpus.limit.tokens is None:
        return None
    valid, test = corpus.split.valid, corpus.split.test
    share = {"train": 1 - valid - test, "valid": valid, "test": test}[split]
    return round(corpus.limit.tokens * share)
