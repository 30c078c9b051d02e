"""Topic clusters without any download: hashed terms, TF-IDF, SVD, k-means; fitted once on a sample, then only applied.

The sample is the documents whose keys come first in a seeded order, so it does not depend on files, threads or the draw's
seed, and its size is fixed, so the fit costs the same for any corpus. Clusters are numbered by size and named by the terms
whose weight in the cluster exceeds their weight outside most. Numbers mean nothing beyond this fit: new data goes to the
saved centroids.

`N` documents, `F` hashed terms (65,536), `E` dimensions, `K` clusters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float32, Int64

from coterie.errors import RequestError
from coterie.select.embed import SentenceModel
from coterie.select.measures import BUCKETS
from coterie.select.plan_settings import Axis, cluster_names, group_names
from coterie.select.profile import Shard
from coterie.select.words import mixed, words
from coterie.store import Action, Artifact, Store

SAMPLE = 4096
"""Documents that the fit looks at."""
DIMENSIONS = 64
_SEED = 0
"""Of the fit. Not the draw's: another seed draws other documents from the same topics."""
_AUTO = (4, 6, 8, 11, 15, 19, 24, 32)
_AT_ONCE = 8192


def topics(store: Store, parts: Sequence[tuple[Artifact, Artifact]], axis: Axis, *, label: str) -> Artifact:
    """Fit clusters on a sample of the training documents, or take a fit of earlier.

    Args:
        parts: (documents, profile) of every part.

    Returns:
        a ``topics`` artifact: ``topics.npz`` (idf, components, centroids), ``facts.json`` (k, names, terms, sizes,
        silhouette with its baseline, agreement of two fits).

    Raises:
        RequestError: more clusters than documents; a model that cannot be opened.
    """
    spec: dict[str, Any] = {"k": axis.k, "groups": axis.groups, "embed": axis.embed is not None}
    inputs = {
        f"profile.{i}": d for i, d in enumerate(sorted(p.content("profile.parquet", "terms/bucket.npy") for _, p in parts))
    }
    if axis.embed is not None:
        inputs["embed"] = SentenceModel.identity(store, axis.embed)
    if axis.model is not None:
        source = Path(axis.model)
        if not (source / "topics.npz").is_file():
            raise RequestError(
                "no clusters fitted earlier", where="axes.cluster.model", found=axis.model, expected="topics.npz"
            )
        spec, inputs = {"model": True}, {"model": store.digest_file(source / "topics.npz")}
    libraries = () if axis.model else ("scikit-learn", "numpy")
    action = Action("topics", spec, inputs, libraries=libraries)

    def build(folder: Path) -> None:
        if axis.model is not None:
            for name in ("topics.npz", "facts.json"):
                (folder / name).write_bytes((Path(axis.model) / name).read_bytes())
            return
        _fit(folder, [Shard(*part) for part in parts], axis, _SEED)

    return store.make(action, build, label=f"topics of {label}")


def sample(keys_N: np.ndarray, content_N: np.ndarray, size: int, seed: int) -> Int64[np.ndarray, " n"]:
    """Rows of distinct content that come first in an order that depends on keys, contents and seed alone."""
    order = np.lexsort((content_N, mixed(keys_N ^ np.uint64(seed % 2**63 * 0x9E3779B9 % 2**64))))
    _, once = np.unique(content_N[order], return_index=True)
    return order[np.sort(once)[:size]]


def _fit(folder: Path, shards: Sequence[Shard], axis: Axis, seed: int) -> None:
    from sklearn.utils.extmath import randomized_svd

    where, tables = [], []
    for number, shard in enumerate(shards):
        table = shard.table("key", "split", "content")
        train = np.flatnonzero(table["split"].to_numpy() == 0)
        where.append(np.stack([np.full(len(train), number), train], 1))
        tables.append(table[train])
    held = pl.concat(tables)
    chosen = np.concatenate(where)[sample(held["key"].to_numpy(), held["content"].to_numpy(), SAMPLE, seed)]
    counts = _stacked(shards, chosen)
    idf_F = _idf(counts)
    if axis.embed is None:
        weighted = _weighted(counts, idf_F)
        rank = max(1, min(DIMENSIONS, min(weighted.shape) - 1))
        _, _, components = randomized_svd(weighted, rank, n_iter=2, random_state=seed % 2**32)
        vectors = _unit(weighted @ components.T.astype(np.float32))
    else:
        components = np.zeros((1, 1))
        vectors = SentenceModel(axis.embed).embed([shards[s].whole([r])[0] for s, r in chosen])
    k, tried = _k(axis.k, vectors, seed, len(chosen))
    labels, centroids = means(vectors, k, seed)
    facts = _described(shards, chosen, counts, idf_F, vectors, labels, seed)
    groups = axis.groups or 1
    if groups > k:
        raise RequestError(
            "more groups than clusters", where="axes.cluster.groups", expected=f"at most {k}", found=str(groups)
        )
    facts |= {"k": k, "tried": tried, "names": cluster_names(k), "groups": _grouped(centroids, labels, groups)}
    np.savez(
        folder / "topics.npz",
        idf=idf_F.astype(np.float32),
        components=components.astype(np.float32),
        centroids=centroids.astype(np.float32),
    )
    (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False))


def _stacked(shards: Sequence[Shard], where: np.ndarray) -> Any:
    """Sparse term counts of some documents, one row each."""
    from scipy.sparse import csr_matrix

    data, index, first = [], [], [0]
    for s, r in where:
        start, bucket, count = shards[s].terms
        data.append(count[start[r] : start[r + 1]])
        index.append(bucket[start[r] : start[r + 1]])
        first.append(first[-1] + len(data[-1]))
    values = np.concatenate([*data, np.zeros(0, np.uint8)]).astype(np.float32)
    return csr_matrix(
        (values, np.concatenate([*index, np.zeros(0, np.uint16)]).astype(np.int32), first), shape=(len(where), BUCKETS)
    )


def _idf(counts: Any) -> np.ndarray:
    """Smoothed; terms in one document or in more than half of them tell nothing and weigh 0."""
    n = counts.shape[0]
    df = np.bincount(counts.indices, minlength=BUCKETS)
    return np.where((df >= min(2, n)) & (df <= max(0.5 * n, 1)), np.log((1 + n) / (1 + df)) + 1, 0.0)


def _weighted(counts: Any, idf_F: np.ndarray) -> Any:
    from sklearn.preprocessing import normalize

    made = counts.copy()
    made.data = (1 + np.log(made.data)) * idf_F[made.indices].astype(np.float32)
    return normalize(made, copy=False).astype(np.float32)


def _unit(vectors: np.ndarray) -> Float32[np.ndarray, "N E"]:
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)


def means(vectors: np.ndarray, k: int, seed: int, starts: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """k-means; clusters numbered by size, the largest first."""
    from sklearn.cluster import KMeans

    fitted = KMeans(k, n_init=starts, random_state=seed % 2**32).fit(vectors)
    order = np.argsort(-np.bincount(fitted.labels_, minlength=k), kind="stable")
    number = np.argsort(order)
    return number[fitted.labels_], fitted.cluster_centers_[order]


def _k(asked: int | str, vectors: np.ndarray, seed: int, documents: int) -> tuple[int, dict[str, float]]:
    if isinstance(asked, int):
        if asked > documents:
            raise RequestError(
                "more clusters than documents",
                where="axes.cluster.k",
                expected=f"at most {documents:,}",
                found=str(asked),
                do="lower k",
            )
        return asked, {}
    tried = {k: _silhouette(vectors, means(vectors, k, seed, 1)[0], seed) for k in _AUTO if k < documents / 2}
    return max(tried, key=lambda k: tried[k], default=1), {str(k): v for k, v in tried.items()}


def _silhouette(vectors: np.ndarray, labels: np.ndarray, seed: int) -> float:
    from sklearn.metrics import silhouette_score

    size = min(len(vectors), 2000)
    if not 1 < len(np.unique(labels[:size])) < size:
        return 0.0
    return round(float(silhouette_score(vectors[:size], labels[:size])), 4)


def _described(
    shards: Sequence[Shard],
    chosen: np.ndarray,
    counts: Any,
    idf_F: np.ndarray,
    vectors: np.ndarray,
    labels: np.ndarray,
    seed: int,
) -> dict[str, Any]:
    """Top terms, and how far the clusters can be trusted: silhouette against shuffled labels, agreement of two fits."""
    from sklearn.metrics import adjusted_rand_score

    k = int(labels.max()) + 1
    spelled = _spelled(shards, chosen[:600])
    weighted = _weighted(counts, idf_F)
    mean = np.asarray(weighted.mean(0)).ravel()
    top = []
    for c in range(k):
        own = np.asarray(weighted[labels == c].mean(0)).ravel()
        best = [b for b in np.argsort(-(own - mean))[:60] if b in spelled][:8]
        top.append([spelled[b] for b in best])
    shuffled = np.random.default_rng(seed).permutation(labels)
    half = len(vectors) // 2
    agreement = None
    if half > 2 * k:
        first, second = (means(part, k, seed, 1)[1] for part in (vectors[:half], vectors[half:]))
        agreement = round(float(adjusted_rand_score(nearest(vectors, first), nearest(vectors, second))), 3)
    return {
        "terms": top,
        "sample": len(chosen),
        "sizes": np.bincount(labels, minlength=k).tolist(),
        "silhouette": _silhouette(vectors, labels, seed),
        "silhouette_shuffled": _silhouette(vectors, shuffled, seed),
        "refit_ari": agreement,
    }


def _spelled(shards: Sequence[Shard], chosen: np.ndarray) -> dict[int, str]:
    """The most frequent word of each bucket, from some documents."""
    found: dict[int, dict[str, int]] = {}
    for start in range(0, len(chosen), 100):
        texts = [shards[s].whole([r])[0] for s, r in chosen[start : start + 100]]
        it = words(texts)
        hashes, first, count = np.unique(it.hash_W, return_index=True, return_counts=True)
        for h, w, n in zip(hashes >> np.uint64(48), first, count, strict=True):
            if it.end_W[w] - it.start_W[w] > 1:
                held = found.setdefault(int(h), {})
                spelling = it.spelled(w)
                held[spelling] = held.get(spelling, 0) + int(n)
    return {b: max(sorted(held), key=lambda s: held[s]) for b, held in found.items()}


def _grouped(centroids: np.ndarray, labels: np.ndarray, groups: int) -> list[str]:
    """The group of each cluster: near clusters together, greedily, no group much above its share of documents."""
    k = len(centroids)
    if groups == 1:
        return group_names(1) * k
    sizes = np.bincount(labels, minlength=k).astype(float)
    from sklearn.cluster import KMeans

    hubs = KMeans(groups, n_init=4, random_state=0).fit(_unit(centroids)).cluster_centers_
    likeness = _unit(centroids) @ _unit(hubs).T
    group_of, load, room = np.full(k, -1), np.zeros(groups), sizes.sum() / groups
    for c in range(k):  # the largest first
        free = [g for g in range(groups) if load[g] == 0 or load[g] + sizes[c] <= 1.1 * room]
        must = [g for g in range(groups) if load[g] == 0]
        left = k - c
        pool = must if len(must) >= left else free or [int(np.argmin(load))]
        best = max(pool, key=lambda g: (likeness[c, g], -g))
        group_of[c] = best
        load[best] += sizes[c]
    number = {g: i for i, g in enumerate(dict.fromkeys(group_of.tolist()))}
    names = group_names(groups)
    return [names[number[int(g)]] for g in group_of]


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> Int64[np.ndarray, " N"]:
    """The nearest centroid of each vector; the first of equals."""
    return np.argmin((centroids**2).sum(1)[None] - 2 * vectors @ centroids.T, axis=1)


@dataclass(frozen=True)
class Space:
    """A fit, opened: vectors and clusters of any documents."""

    idf_F: np.ndarray
    components: np.ndarray
    centroids: np.ndarray
    embed: str | None

    @classmethod
    def open(cls, artifact: Artifact, axis: Axis) -> Space:
        with np.load(artifact.file("topics.npz"), allow_pickle=False) as held:
            return cls(held["idf"], held["components"], held["centroids"], axis.embed)

    def vectors(self, shard: Shard, rows: np.ndarray) -> Float32[np.ndarray, "N E"]:
        if self.embed is not None:
            return SentenceModel(self.embed).embed(shard.whole(rows.tolist()))
        counts = _stacked([shard], np.stack([np.zeros(len(rows), np.int64), rows], 1))
        return _unit(_weighted(counts, self.idf_F) @ self.components.T)

    def clusters(self, shard: Shard) -> Int64[np.ndarray, " N"]:
        """The cluster of every document of a part."""
        from scipy.sparse import csr_matrix

        first, bucket, count = shard.terms
        found = []
        for low in range(0, len(first) - 1, _AT_ONCE):
            high = min(low + _AT_ONCE, len(first) - 1)
            if self.embed is not None:
                found.append(nearest(self.vectors(shard, np.arange(low, high)), self.centroids))
                continue
            part = slice(first[low], first[high])
            shape = (high - low, BUCKETS)
            rows = csr_matrix(
                (count[part].astype(np.float32), bucket[part].astype(np.int32), first[low : high + 1] - first[low]), shape
            )
            found.append(nearest(_unit(_weighted(rows, self.idf_F) @ self.components.T), self.centroids))
        return np.concatenate([*found, np.zeros(0, np.int64)])
