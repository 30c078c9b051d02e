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
from typing import Any, Protocol

import numpy as np
import polars as pl

from coterie.errors import RequestError
from coterie.select import explain, selection
from coterie.select import selection_report as report
from coterie.select.corpus import Corpus
from coterie.select.plan_settings import CLUSTER, cluster_names
from coterie.select.pool import texts_of
from coterie.select.profile import key_of
from coterie.select.select_settings import Select
from coterie.select.shortfall import refuse_unmet
from coterie.select.topics import SAMPLE, means, nearest, sample
from coterie.spec.json_types import Figures
from coterie.store import Store

SCORE, TOPIC, LABEL = "score", "topic", "label"
"""Columns that plug-ins add."""
_AT_ONCE = 256


class Scorer(Protocol):
    def score(self, batch: Sequence[str]) -> Sequence[float]:
        """Quality of each text; higher is better, the scale does not matter."""


class Embedder(Protocol):
    def embed(self, batch: Sequence[str]) -> Any:
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
        request: Mapping[str, Any] | Select,
        *,
        score: Scorer | None = None,
        embed: Embedder | None = None,
        label: Labeller | None = None,
        seed: int = 0,
        store: str | Path | None = None,
    ) -> None:
        raw = request.model_dump(exclude_unset=True) if isinstance(request, Select) else dict(request)
        axes = dict(raw.get("axes") or {})
        self._k = 0
        if embed is not None:
            asked = dict(axes.get(CLUSTER) or {})
            self._k = asked.pop("k", 19)
            if not isinstance(self._k, int) or {"embed", "model", "column", "groups"} & asked.keys():
                raise RequestError("embed= makes the clusters", where="axes.cluster", expected="k (a number), mix or target")
            axes[CLUSTER] = {**asked, "column": TOPIC}
        if label is not None:
            axes.setdefault(LABEL, {})
        if score is not None:
            raw["rank"] = {**(raw.get("rank") or {}), "by": SCORE}
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
        texts = frame[text].to_list()
        batches = [texts[i : i + _AT_ONCE] for i in range(0, len(texts), _AT_ONCE)]
        added: dict[str, Sequence[Any]] = {}
        if self._score is not None:
            added[SCORE] = [float(s) for b in batches for s in self._score.score(b)]
        if self._label is not None:
            added[LABEL] = [str(v) for b in batches for v in self._label.label(b)]
        if self._embed is not None:
            vectors = np.concatenate([np.asarray(self._embed.embed(b), dtype=np.float32) for b in batches])
            added[TOPIC] = self._topics(vectors, frame[id].cast(pl.String).to_list() if id is not None else texts)
        wrong = [name for name, values in added.items() if len(values) != len(texts)]
        if wrong:
            raise RequestError(
                f"the plug-in for {wrong[0]!r} gave another number of values than texts", found=str(len(added[wrong[0]]))
            )
        whole = frame.with_columns(pl.Series(name, list(values)) for name, values in added.items())
        self._root.mkdir(parents=True, exist_ok=True)
        path = self._root / "frame.parquet"
        whole.write_parquet(path)
        corpus = Corpus.model_validate(
            {"path": str(path), "text": text, "id": id, "columns": tuple(columns), "split": {"valid": 0, "test": 0}}
        ).model_copy(update={"select": self.select})
        return Selected(selection.profile_corpus(Store(self._root / "store"), corpus, label="frame"), self)

    def _topics(self, vectors: np.ndarray, names: Sequence[str]) -> list[str]:
        if self._k > len(vectors):
            raise RequestError("more clusters than documents", where="axes.cluster.k", found=str(self._k), do="lower k")
        key = key_of(names)
        chosen = sample(key, key, SAMPLE, int(self.select.seed or 0))
        _, centroids = means(vectors[chosen], self._k, int(self.select.seed or 0))
        return [cluster_names(self._k)[c] for c in nearest(vectors, centroids)]


class Selected:
    """A profiled frame and its selection."""

    def __init__(self, it: selection.Profiled, owner: Selector) -> None:
        self._it, self._owner = it, owner

    def check(self) -> None:
        """Raises RequestError, with the certificate, if the plan cannot be met."""
        refuse_unmet(self._it.chosen, self._it.select, self._it.label)

    @property
    def ids(self) -> list[str]:
        """Of the chosen documents, in the order in which they are given out."""
        chosen = self._it.chosen
        return self._it.pool.ids(chosen.pool.row_N[chosen.at])

    @property
    def frame(self) -> pl.DataFrame:
        """A row for each chosen document: id, text, cell, scores, reason."""
        table = selection.chosen_table(self._it, self._it.chosen)
        texts = texts_of(self._it.pool.shards, self._it.pool.places, table["row"].to_numpy())
        return table.drop("row").with_columns(pl.Series("text", texts))

    def why(self, name: str) -> str:
        """What happened to one document."""
        return "\n".join(explain.why(self._it, self._it.chosen, name))

    def report(self) -> Figures:
        """The eleven groups of figures."""
        return report.report(self._it, self._it.chosen)
