"""Selections from Python: a frame in, a selection out; scorers, embedders and labellers of one's own plug in.

    selector = Selector({"budget": {"docs": 100}, "axes": {"cluster": {"k": 8, "mix": 0.4}}}, score=my_model)
    made = selector.fit(frame)         # any object with score(batch), embed(batch) or label(batch) on lists of texts
    made.check()                       # raises, with the certificate, if the plan cannot be met
    made.ids, made.frame, made.why("doc-42"), made.report()

What plugs in adds a column to the frame (`score`, `topic`, `label`), and then everything goes the way of a recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

from coterie.errors import RequestError
from coterie.select import selection_report as report
from coterie.select.choose import refuse_unmet
from coterie.select.plan_settings import CLUSTER, Axis, cluster_names
from coterie.select.profile import key_of, sample, texts_of
from coterie.select.profiled_corpus import Profiled, profile_corpus
from coterie.select.select_settings import Corpus, Select
from coterie.select.selection import chosen_table, why
from coterie.select.term_vectors import nearest
from coterie.select.topic_fit import SAMPLE, means
from coterie.spec.json_types import Figures, Settings
from coterie.store import Store

LABEL = "label"
"""The axis of a labeller's values."""
_SCORES, _TOPICS, _LABELS = "plugged score", "plugged topic", "plugged label"
"""Columns that plug-ins add to the frame."""
_AT_ONCE = 256


class Scorer(Protocol):
    def score(self, batch: Sequence[str]) -> Sequence[float]:
        """Quality of each text; higher is better, the scale does not matter."""


class Embedder(Protocol):
    def embed(self, batch: Sequence[str]) -> ArrayLike:
        """A vector for each text, [n, E]; topic clusters are fitted on them."""


class Labeller(Protocol):
    def label(self, batch: Sequence[str]) -> Sequence[str]:
        """A value for each text; the axis `label` plans their shares."""


class Selector:
    """A request for a selection.

    Args:
        request: what stands under `select:` in a recipe.
        score, embed, label: plug-ins.
        seed: of the draw.
        store: where profiles are kept between calls; a temporary folder by default.
    """

    def __init__(
        self,
        request: Mapping[str, object] | Select,
        *,
        score: Scorer | None = None,
        embed: Embedder | None = None,
        label: Labeller | None = None,
        seed: int = 0,
        store: str | Path | None = None,
    ) -> None:
        raw: Settings = request.model_dump(exclude_unset=True) if isinstance(request, Select) else dict(request)
        axes = dict(raw.get("axes") or {})
        self._k = 0
        if embed is not None:
            topics = dict(axes.get(CLUSTER) or {})
            self._k = topics.pop("k", Axis.model_fields["k"].default)
            if not isinstance(self._k, int) or {"embed", "model", "column", "groups"} & topics.keys():
                raise RequestError("embed= makes the clusters", where="axes.cluster", expected="k (a number), mix or target")
            axes[CLUSTER] = {**topics, "column": _TOPICS}
        if label is not None:
            axes[LABEL] = {"column": _LABELS, **(axes.get(LABEL) or {})}
        if score is not None:
            raw["rank"] = {**(raw.get("rank") or {}), "by": _SCORES}
        self.select = Select.model_validate({**raw, "axes": axes, "seed": seed})
        self._score, self._embed, self._label = score, embed, label
        self._folder = TemporaryDirectory(prefix="coterie-") if store is None else None
        self._root = Path(store if store is not None else str(self._folder and self._folder.name))

    def fit(
        self, frame: pl.DataFrame, *, text: str = "text", id: str | None = None, columns: Sequence[str] = ()
    ) -> Selected:
        """Profile a frame and plan.

        Args:
            text, id: columns; documents without an id are known by their content.
            columns: further columns to keep, as labels that the plan does not use.

        Raises:
            RequestError: what is wrong with the data or the request.
        """
        added = self._plugged(frame[text].to_list(), frame[id].cast(pl.String).to_list() if id is not None else None)
        for name, values in added.items():
            if len(values) != len(frame):
                what = f"the plug-in for {name.removeprefix('plugged ')!r} gave another number of values than texts"
                raise RequestError(what, expected=f"{len(frame):,}", found=f"{len(values):,}")
        self._root.mkdir(parents=True, exist_ok=True)
        path = self._root / "frame.parquet"
        frame.with_columns(pl.Series(name, list(values)) for name, values in added.items()).write_parquet(path)
        corpus = Corpus.model_validate(
            {"path": str(path), "text": text, "id": id, "columns": tuple(columns), "split": {"valid": 0, "test": 0}}
        ).model_copy(update={"select": self.select})
        return Selected(profile_corpus(Store(self._root / "store"), corpus, label="frame"), self)

    def _plugged(self, texts: list[str], ids: list[str] | None) -> dict[str, Sequence[float] | Sequence[str]]:
        """What the plug-ins say of each text, by the column that holds it."""
        batches = [texts[i : i + _AT_ONCE] for i in range(0, len(texts), _AT_ONCE)]
        added: dict[str, Sequence[float] | Sequence[str]] = {}
        if self._score is not None:
            added[_SCORES] = [float(s) for batch in batches for s in self._score.score(batch)]
        if self._label is not None:
            added[_LABELS] = [str(v) for batch in batches for v in self._label.label(batch)]
        if self._embed is not None:
            vectors = np.concatenate([np.asarray(self._embed.embed(batch), dtype=np.float32) for batch in batches])
            added[_TOPICS] = self._topics(vectors, texts if ids is None else ids)
        return added

    def _topics(self, vectors: np.ndarray, names: Sequence[str]) -> list[str]:
        if self._k > len(vectors):
            raise RequestError("more clusters than documents", where="axes.cluster.k", found=str(self._k), do="lower k")
        key, seed = key_of(names), self.select.seed or 0
        _, centroids = means(vectors[sample(key, key, SAMPLE, seed)], self._k, seed)
        return [cluster_names(self._k)[c] for c in nearest(vectors, centroids)]


class Selected:
    """A profiled frame and its selection."""

    def __init__(self, data: Profiled, owner: Selector) -> None:
        self._data, self._owner = data, owner

    def check(self) -> None:
        """Raises RequestError, with the certificate, if the plan cannot be met."""
        refuse_unmet(self._data.chosen, self._data.select, self._data.label)

    @property
    def ids(self) -> list[str]:
        """Of the chosen documents, in the order in which they are given out."""
        chosen = self._data.chosen
        return self._data.pool.ids(chosen.pool.row_N[chosen.at])

    @property
    def frame(self) -> pl.DataFrame:
        """A row for each chosen document: id, text, cell, scores, reason."""
        table, pool = chosen_table(self._data, self._data.chosen), self._data.pool
        texts = texts_of(pool.shards, pool.places[table["row"].to_numpy()])
        return table.drop("row").with_columns(pl.Series("text", texts))

    def why(self, name: str) -> str:
        """What happened to one document."""
        return "\n".join(why(self._data, self._data.chosen, name))

    def report(self) -> Figures:
        """The eleven groups of figures."""
        return report.report(self._data, self._data.chosen)
