"""Vectors of documents: TF-IDF of hashed terms, projected by an SVD; or those of a sentence-embedding model.

`N` documents, `F` hashed terms (65,536), `E` dimensions, `K` clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int64
from scipy.sparse import csr_matrix

from coterie.select.embed import SentenceModel
from coterie.select.measures import BUCKETS
from coterie.select.profile import Shard

_AT_ONCE = 8192


def stacked(shards: Sequence[Shard], where: Int64[np.ndarray, "N 2"]) -> csr_matrix:
    """Term counts [N, F] of some documents (part, row)."""
    counts, buckets, first = [], [], [0]
    for s, r in where:
        start, bucket, count = shards[s].terms
        counts.append(count[start[r] : start[r + 1]])
        buckets.append(bucket[start[r] : start[r + 1]])
        first.append(first[-1] + len(counts[-1]))
    nothing = np.zeros(0, np.uint16)
    return _sparse(np.concatenate([*counts, nothing]), np.concatenate([*buckets, nothing]), first)


def _sparse(count: np.ndarray, bucket: np.ndarray, first: Sequence[int] | np.ndarray) -> csr_matrix:
    return csr_matrix((count.astype(np.float32), bucket.astype(np.int32), first), shape=(len(first) - 1, BUCKETS))


def inverse_frequency(counts: csr_matrix) -> Float64[np.ndarray, " F"]:
    """Smoothed; terms in one document or in more than half of them tell nothing and weigh 0."""
    n = counts.shape[0]
    df = np.bincount(counts.indices, minlength=BUCKETS)
    return np.where((df >= min(2, n)) & (df <= max(0.5 * n, 1)), np.log((1 + n) / (1 + df)) + 1, 0.0)


def weighted(counts: csr_matrix, idf_F: np.ndarray) -> csr_matrix:
    """TF-IDF [N, F], each row of length 1."""
    from sklearn.preprocessing import normalize

    made = counts.copy()
    made.data = (1 + np.log(made.data)) * idf_F[made.indices].astype(np.float32)
    return normalize(made, copy=False).astype(np.float32)


def unit(vectors: np.ndarray) -> Float32[np.ndarray, "N E"]:
    """Each vector at length 1."""
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def nearest(vectors: Float32[np.ndarray, "N E"], centroids: Float32[np.ndarray, "K E"]) -> Int64[np.ndarray, " N"]:
    """The nearest centroid of each vector; the first of equals."""
    return np.argmin((centroids**2).sum(1)[None] - 2 * vectors @ centroids.T, axis=1)


@dataclass(frozen=True)
class Space:
    """Fitted clusters, opened: vectors and clusters of any documents."""

    idf_F: Float32[np.ndarray, " F"]
    components_EF: Float32[np.ndarray, "E F"]
    centroids_KE: Float32[np.ndarray, "K E"]
    embed: str | None
    """Folder of the sentence-embedding model; None: vectors of terms."""

    @classmethod
    def open(cls, path: Path, embed: str | None) -> Space:
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["idf"], arrays["components"], arrays["centroids"], embed)

    def vectors(self, shard: Shard, rows: Int64[np.ndarray, " N"]) -> Float32[np.ndarray, "N E"]:
        """Unit vectors of some documents of a part."""
        if self.embed is not None:
            return SentenceModel(self.embed).embed(shard.whole(rows.tolist()))
        return self._projected(stacked([shard], np.stack([np.zeros(len(rows), np.int64), rows], 1)))

    def _projected(self, counts: csr_matrix) -> Float32[np.ndarray, "N E"]:
        return unit(weighted(counts, self.idf_F) @ self.components_EF.T)

    def clusters(self, shard: Shard) -> Int64[np.ndarray, " N"]:
        """The cluster of every document of a part."""
        first, bucket, count = shard.terms
        found = []
        for low in range(0, len(first) - 1, _AT_ONCE):
            high = min(low + _AT_ONCE, len(first) - 1)
            if self.embed is not None:
                vectors = self.vectors(shard, np.arange(low, high))
            else:
                part = slice(first[low], first[high])
                vectors = self._projected(_sparse(count[part], bucket[part], first[low : high + 1] - first[low]))
            found.append(nearest(vectors, self.centroids_KE))
        return np.concatenate([*found, np.zeros(0, np.int64)])
