"""A corpus with a selection becomes parts, profiles, topics and a pool: all that is known before a plan is made.

Each is an artifact, so another budget plans and picks anew without reading, and another file is profiled without the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64

from coterie.corpora.row_plan import apart, find_column
from coterie.errors import RequestError
from coterie.select.candidates import Candidates
from coterie.select.choose import Chosen, choose
from coterie.select.plan_settings import CLUSTER, Axis
from coterie.select.pool import Pool, make_pool
from coterie.select.profile import Shard, by_part
from coterie.select.profile_shards import kept_columns, profile_parts
from coterie.select.select_settings import Corpus, Select
from coterie.select.term_vectors import Space, model_identity
from coterie.spec.json_types import Settings
from coterie.store import Action, Artifact, Store

_MANY = 200
"""Values above which a column is no label."""


@dataclass
class Profiled:
    """Everything that is known of a corpus before a plan is made."""

    corpus: Corpus
    label: str
    store: Store
    parts: list[tuple[Artifact, Artifact]]
    """Documents and profile of each part."""
    topics: Artifact | None
    artifact: Artifact
    """The pool's."""

    @property
    def select(self) -> Select:
        assert self.corpus.select is not None
        return self.corpus.select

    @property
    def seed(self) -> int:
        return self.select.seed or 0

    @cached_property
    def pool(self) -> Pool:
        return Pool(self.artifact, self.parts)

    @cached_property
    def candidates(self) -> Candidates:
        """What may be chosen, with every column that can serve as a label."""
        axes = {name: CLUSTER if a.column is None else self.columns[a.column] for name, a in self.select.axes.items()}
        labels = {apart(name, axes): self.columns[name] for name in self.labels}
        return Candidates.of(self.pool.table, axes | labels)

    @cached_property
    def columns(self) -> dict[str, str]:
        """The corpus's own columns, and where each is in the pool."""
        named, there = [*kept_columns(self.corpus), *self.select.columns], self.pool.table.columns
        return {name: find_column(name, there) for name in named}

    @cached_property
    def labels(self) -> list[str]:
        """Columns that no axis uses and that have few values: what balance is judged by."""
        used = self.select.columns
        return [c for c in self.columns if c not in used and 1 < self.pool.table[self.columns[c]].n_unique() <= _MANY]

    def vectors(self, at: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n E"]:
        """Topic vectors of some candidates."""
        assert self.topics is not None
        space = Space.open(self.topics.file("topics.npz"), self.select.axes[CLUSTER].embed)
        where = self.pool.places[self.candidates.row_N[at]]
        parts = list(by_part(where))
        vectors = [space.vectors(self.pool.shards[part], where[mine, 1].astype(np.int64)) for part, mine in parts]
        return np.concatenate(vectors)[np.argsort(np.concatenate([mine for _, mine in parts]))]

    @cached_property
    def chosen(self) -> Chosen:
        """The selection that the recipe asks for, met or not."""
        vectors = self.vectors if self.topics is not None else None
        return choose(self.candidates, self.select, seed=self.seed, vectors=vectors, label=self.label)


def profile_corpus(store: Store, corpus: Corpus, *, label: str) -> Profiled:
    """Read and profile a corpus, fit or take its clusters, merge, filter.

    Raises:
        RequestError: what is wrong with the data or the request.
    """
    assert corpus.select is not None
    parts = profile_parts(store, corpus, label=label)
    axis = corpus.select.topics
    fitted = fitted_topics(store, parts, axis, label=label) if axis is not None else None
    return Profiled(corpus, label, store, parts, fitted, make_pool(store, parts, fitted, corpus.select, label=label))


def fitted_topics(store: Store, parts: Sequence[tuple[Artifact, Artifact]], axis: Axis, *, label: str) -> Artifact:
    """Fit clusters on a sample of the training documents, or take a fit of earlier.

    Args:
        parts: (documents, profile) of every part.

    Returns:
        a ``topics`` artifact: ``topics.npz`` (idf, components, centroids), ``facts.json`` (k, names, terms, sizes,
        silhouette with its baseline, agreement of two fits).

    Raises:
        RequestError: more clusters than documents; a model that cannot be opened.
    """
    if axis.model is not None:
        return _fitted_earlier(store, Path(axis.model), label)
    spec: Settings = {"k": axis.k, "groups": axis.groups, "embed": axis.embed is not None}
    profiles = sorted(profile.content("profile.parquet", "terms/bucket.npy") for _, profile in parts)
    inputs = {f"profile.{i}": content for i, content in enumerate(profiles)}
    if axis.embed is not None:
        inputs["embed"] = model_identity(store, axis.embed)

    def build(folder: Path) -> None:
        from coterie.select.topic_fit import fit_topics

        fit_topics(folder, [Shard(*part) for part in parts], axis)

    action = Action("topics", spec, inputs, libraries=("scikit-learn", "numpy"))
    return store.make(action, build, label=f"topics of {label}")


def _fitted_earlier(store: Store, source: Path, label: str) -> Artifact:
    if not (source / "topics.npz").is_file():
        where, found = "axes.cluster.model", str(source)
        raise RequestError("no clusters fitted earlier", where=where, found=found, expected="topics.npz")

    def build(folder: Path) -> None:
        for name in ("topics.npz", "facts.json"):
            (folder / name).write_bytes((source / name).read_bytes())

    action = Action("topics", {"model": True}, {"model": store.digest_file(source / "topics.npz")})
    return store.make(action, build, label=f"topics of {label}")
