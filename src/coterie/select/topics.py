"""Topic clusters without any download: hashed terms, TF-IDF, SVD, k-means; fitted once on a sample, then only applied.

The sample is the documents whose keys come first in a seeded order, so it does not depend on files, threads or the draw's
seed, and its size is fixed, so the fit costs the same for any corpus. Numbers mean nothing beyond this fit: new data goes to
the saved centroids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from coterie.errors import RequestError
from coterie.select.embed import SentenceModel
from coterie.select.plan_settings import Axis
from coterie.select.profile import Shard
from coterie.spec.json_types import Settings
from coterie.store import Action, Artifact, Store


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
    if axis.model is not None:
        return _fitted_earlier(store, Path(axis.model), label)
    spec: Settings = {"k": axis.k, "groups": axis.groups, "embed": axis.embed is not None}
    profiles = sorted(profile.content("profile.parquet", "terms/bucket.npy") for _, profile in parts)
    inputs = {f"profile.{i}": content for i, content in enumerate(profiles)}
    if axis.embed is not None:
        inputs["embed"] = SentenceModel.identity(store, axis.embed)

    def build(folder: Path) -> None:
        from coterie.select.topic_fit import fit_topics

        fit_topics(folder, [Shard(*part) for part in parts], axis)

    action = Action("topics", spec, inputs, libraries=("scikit-learn", "numpy"))
    return store.make(action, build, label=f"topics of {label}")


def _fitted_earlier(store: Store, source: Path, label: str) -> Artifact:
    if not (source / "topics.npz").is_file():
        raise RequestError(
            "no clusters fitted earlier", where="axes.cluster.model", found=str(source), expected="topics.npz"
        )

    def build(folder: Path) -> None:
        for name in ("topics.npz", "facts.json"):
            (folder / name).write_bytes((source / name).read_bytes())

    action = Action("topics", {"model": True}, {"model": store.digest_file(source / "topics.npz")})
    return store.make(action, build, label=f"topics of {label}")
