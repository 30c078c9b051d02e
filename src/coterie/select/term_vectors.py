"""Vectors of documents: TF-IDF of hashed terms, projected by an SVD; or those of a sentence-embedding model.

`N` documents, `F` hashed terms (65,536), `E` dimensions, `K` clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Float64, Int64
from scipy.sparse import csr_matrix, vstack

from coterie.errors import RequestError
from coterie.select.measures import BUCKETS
from coterie.select.profile import Shard, by_part
from coterie.spec.digest import digest
from coterie.store import Store
from coterie.store.admit import admit

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_AT_ONCE = 8192


def stacked(shards: Sequence[Shard], where: Int64[np.ndarray, "N 2"]) -> csr_matrix:
    """Term counts [N, F] of some documents (part, row)."""
    parts = list(by_part(where))
    order = np.argsort(np.concatenate([np.zeros(0, np.int64), *(mine for _, mine in parts)]))
    return vstack([_counts(shards[part], where[mine, 1]) for part, mine in parts], format="csr")[order]


def _counts(shard: Shard, rows: Int64[np.ndarray, " N"]) -> csr_matrix:
    start, bucket, count = shard.terms
    first = np.concatenate([[0], np.cumsum(start[rows + 1] - start[rows])])
    at = np.arange(first[-1]) + np.repeat(start[rows] - first[:-1], np.diff(first))
    return csr_matrix((count[at].astype(np.float32), bucket[at].astype(np.int32), first), shape=(len(rows), BUCKETS))


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
            return embedded(self.embed, shard.whole(rows.tolist()))
        return unit(weighted(_counts(shard, rows), self.idf_F) @ self.components_EF.T)

    def clusters(self, shard: Shard) -> Int64[np.ndarray, " N"]:
        """The cluster of every document of a part."""
        total = len(shard.terms[0]) - 1
        lows = range(0, total, _AT_ONCE)
        vectors = (self.vectors(shard, np.arange(low, min(low + _AT_ONCE, total))) for low in lows)
        found = [nearest(some, self.centroids_KE) for some in vectors]
        return np.concatenate([*found, np.zeros(0, np.int64)])


# sentence-embedding models ----------------------------------------------------------------------------------------------


_LENGTH, _BATCH = 256, 16
"""Tokens of a text that are looked at; texts at a time."""


def model_identity(store: Store, path: str) -> str:
    """Digest of a sentence-embedding model's weights, configuration and tokenizer.

    Raises:
        RequestError: no such folder, or one without safetensors.
    """
    folder = Path(path)
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])
    if not any(f.suffix == ".safetensors" for f in files):
        expected = "a folder with config.json, model.safetensors and tokenizer.json"
        raise RequestError("no sentence-embedding model", where="axes.cluster.embed", found=path, expected=expected)
    return digest({f.name: store.digest_file(f) for f in files})


def embedded(path: str, texts: Sequence[str]) -> Float32[np.ndarray, "N E"]:
    """A vector of length 1 for each text: the mean of the last hidden states of a Hugging Face encoder in a folder."""
    import torch

    tokenizer, model = _opened(path)
    found = [np.zeros((0, model.config.hidden_size), np.float32)]
    for start in range(0, len(texts), _BATCH):
        batch = list(texts[start : start + _BATCH])
        ids = tokenizer(batch, padding=True, truncation=True, max_length=_LENGTH, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**ids).last_hidden_state.float()
        seen = ids["attention_mask"][..., None].float()
        mean = (hidden * seen).sum(1) / seen.sum(1).clamp(min=1)
        found.append(torch.nn.functional.normalize(mean, dim=-1).numpy())
    return np.concatenate(found)


@cache
def _opened(path: str) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    from transformers import AutoModel, AutoTokenizer

    from coterie.models.bounded import bounded, require_finite

    admit(Path(path))
    with bounded(Path(path), Path(path).glob("*.safetensors")):
        model = AutoModel.from_pretrained(path, trust_remote_code=False, use_safetensors=True)
    require_finite(model.named_parameters(), Path(path))
    return AutoTokenizer.from_pretrained(path, trust_remote_code=False), model.eval()
