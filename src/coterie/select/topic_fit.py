"""Topic clusters without any download, fitted once on a sample: hashed terms, TF-IDF, SVD, k-means; and how far they can be
trusted.

The sample is the documents whose keys come first in a seeded order, so it does not depend on files, threads or the draw's
seed, and its size is fixed, so the fit costs the same for any corpus. Numbers mean nothing beyond this fit: new data goes to
the saved centroids.

Clusters are numbered by size and named by the terms whose weight in the cluster exceeds their weight outside most.

`N` documents of the sample, `E` dimensions, `K` clusters.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float32, Int64
from scipy.sparse import csr_matrix

from coterie.errors import RequestError
from coterie.select.plan_settings import Axis, cluster_names, group_names
from coterie.select.profile import Shard, sample, texts_of
from coterie.select.term_vectors import embedded, inverse_frequency, nearest, stacked, unit, weighted
from coterie.select.words import words
from coterie.spec.json_types import Figures

SAMPLE = 4096
"""Documents that the fit looks at."""
DIMENSIONS = 64
_SEED = 0
"""Of the fit. Not the draw's: another seed draws other documents from the same topics."""
_AUTO = (4, 6, 8, 11, 15, 19, 24, 32)


def fit_topics(folder: Path, shards: Sequence[Shard], axis: Axis) -> None:
    """Write ``topics.npz`` and ``facts.json``.

    Raises:
        RequestError: more clusters than documents, or more groups than clusters.
    """
    from sklearn.utils.extmath import randomized_svd

    chosen = _sampled(shards)
    counts = stacked(shards, chosen)
    idf_F = inverse_frequency(counts)
    tfidf = weighted(counts, idf_F)
    if axis.embed is None:
        rank = max(1, min(DIMENSIONS, min(tfidf.shape) - 1))
        _, _, components = randomized_svd(tfidf, rank, n_iter=2, random_state=_SEED)
        vectors = unit(tfidf @ components.T.astype(np.float32))
    else:
        components = np.zeros((1, 1))
        vectors = embedded(axis.embed, texts_of(shards, chosen))
    k, tried = _number(axis.k, vectors)
    labels, centroids = means(vectors, k, _SEED)
    groups = axis.groups or 1
    if groups > k:
        where = "axes.cluster.groups"
        raise RequestError("more groups than clusters", where=where, expected=f"at most {k}", found=str(groups))
    facts = {"terms": _top_terms(tfidf, labels, _spelled(shards, chosen[:600])), "sample": len(chosen)}
    facts |= _trust(vectors, labels)
    facts |= {"k": k, "tried": tried, "names": cluster_names(k), "groups": _grouped(centroids, labels, groups)}
    arrays = {"idf": idf_F, "components": components, "centroids": centroids}
    np.savez(folder / "topics.npz", **{name: array.astype(np.float32) for name, array in arrays.items()})
    (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True, ensure_ascii=False))


def _sampled(shards: Sequence[Shard]) -> Int64[np.ndarray, "N 2"]:
    """Training documents (part, row)."""
    where, tables = [], []
    for number, shard in enumerate(shards):
        table = shard.table("key", "split", "content")
        train = np.flatnonzero(table["split"].to_numpy() == 0)
        where.append(np.stack([np.full(len(train), number), train], 1))
        tables.append(table[train])
    pool = pl.concat(tables)
    return np.concatenate(where)[sample(pool["key"].to_numpy(), pool["content"].to_numpy(), SAMPLE, _SEED)]


def means(
    vectors: Float32[np.ndarray, "N E"], k: int, seed: int, starts: int = 4
) -> tuple[Int64[np.ndarray, " N"], Float32[np.ndarray, "K E"]]:
    """k-means: the cluster of each vector, and the centroids; clusters numbered by size, the largest first."""
    from sklearn.cluster import KMeans

    fitted = KMeans(k, n_init=starts, random_state=seed % 2**32).fit(vectors)
    order = np.argsort(-np.bincount(fitted.labels_, minlength=k), kind="stable")
    return np.argsort(order)[fitted.labels_], fitted.cluster_centers_[order]


def _number(k: int | str, vectors: np.ndarray) -> tuple[int, dict[str, float]]:
    """How many clusters; for `auto`, the best of several by silhouette, and what was tried."""
    if isinstance(k, int):
        if k > len(vectors):
            what, most = "more clusters than documents", f"at most {len(vectors):,}"
            raise RequestError(what, where="axes.cluster.k", expected=most, found=str(k), do="lower k")
        return k, {}
    tried = {n: _silhouette(vectors, means(vectors, n, _SEED, 1)[0]) for n in _AUTO if n < len(vectors) / 2}
    return max(tried, key=lambda n: tried[n], default=1), {str(n): v for n, v in tried.items()}


def _silhouette(vectors: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import silhouette_score

    size = min(len(vectors), 2000)
    if not 1 < len(np.unique(labels[:size])) < size:
        return 0.0
    return round(float(silhouette_score(vectors[:size], labels[:size])), 4)


def _trust(vectors: np.ndarray, labels: np.ndarray) -> Figures:
    """How far the clusters can be trusted: silhouette against shuffled labels, agreement of fits on two halves."""
    from sklearn.metrics import adjusted_rand_score

    k, half, agreement = int(labels.max()) + 1, len(vectors) // 2, None
    if half > 2 * k:
        first, second = (means(part, k, _SEED, 1)[1] for part in (vectors[:half], vectors[half:]))
        agreement = round(float(adjusted_rand_score(nearest(vectors, first), nearest(vectors, second))), 3)
    return {
        "sizes": np.bincount(labels, minlength=k).tolist(),
        "silhouette": _silhouette(vectors, labels),
        "silhouette_shuffled": _silhouette(vectors, np.random.default_rng(_SEED).permutation(labels)),
        "refit_ari": agreement,
    }


def _top_terms(tfidf: csr_matrix, labels: np.ndarray, spelled: dict[int, str]) -> list[list[str]]:
    """The terms that tell each cluster from the rest."""
    mean = np.asarray(tfidf.mean(0)).ravel()
    top = []
    for c in range(int(labels.max()) + 1):
        own = np.asarray(tfidf[labels == c].mean(0)).ravel()
        best = [b for b in np.argsort(-(own - mean))[:60] if b in spelled][:8]
        top.append([spelled[b] for b in best])
    return top


def _spelled(shards: Sequence[Shard], chosen: np.ndarray) -> dict[int, str]:
    """The most frequent word of each bucket, from some documents."""
    counts: dict[int, dict[str, int]] = {}
    for start in range(0, len(chosen), 100):
        found = words(texts_of(shards, chosen[start : start + 100]))
        hashes, first, count = np.unique(found.hash_W, return_index=True, return_counts=True)
        for bucket, w, n in zip(hashes >> np.uint64(48), first, count, strict=True):
            if found.end_W[w] - found.start_W[w] > 1:
                spellings, spelling = counts.setdefault(int(bucket), {}), found.spelled(w)
                spellings[spelling] = spellings.get(spelling, 0) + int(n)
    return {b: max(sorted(spellings), key=lambda s: spellings[s]) for b, spellings in counts.items()}


def _grouped(centroids: np.ndarray, labels: np.ndarray, groups: int) -> list[str]:
    """The group of each cluster: near clusters together, greedily, no group much above its share of documents."""
    from sklearn.cluster import KMeans

    k = len(centroids)
    if groups == 1:
        return group_names(1) * k
    sizes = np.bincount(labels, minlength=k).astype(float)
    hubs = KMeans(groups, n_init=4, random_state=0).fit(unit(centroids)).cluster_centers_
    likeness = unit(centroids) @ unit(hubs).T
    group_of, load, room = np.full(k, -1), np.zeros(groups), sizes.sum() / groups
    for c in range(k):  # the largest first
        free = [g for g in range(groups) if load[g] == 0 or load[g] + sizes[c] <= 1.1 * room]
        empty = [g for g in range(groups) if load[g] == 0]
        eligible = empty if len(empty) >= k - c else free or [int(np.argmin(load))]
        best = max(eligible, key=lambda g: (likeness[c, g], -g))
        group_of[c] = best
        load[best] += sizes[c]
    number = {g: i for i, g in enumerate(dict.fromkeys(group_of.tolist()))}
    names = group_names(groups)
    return [names[number[int(g)]] for g in group_of]
