"""Losses by group, from cached scores: no model runs here.

Tokens are summed up to documents; `compare` does the rest. The artifact speaks of models and corpora by position, and
`tables` puts the names in.

Letters: M models, D documents, G groups, N blocks, T positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int
from safetensors.numpy import load_file, save_file

from coterie.corpora.row_plan import find_column
from coterie.errors import RequestError, WorkError
from coterie.evaluation.compare import Entry, Figure, compare, write
from coterie.evaluation.leaks import leaked
from coterie.store import Action, Artifact, Store

Nll = tuple[np.ndarray, np.ndarray | None]


@dataclass(frozen=True)
class TokenLosses:
    """One model's losses on the blocks of one corpus; read only if the evaluation has to be made."""

    model: str
    """Digest of the expert or mixture: the source that the figures name."""
    digest: str
    """Digest of what the losses are read or computed from."""
    load: Callable[[], Nll]
    """Gives nll_NT (nats, ``[N, T-1]``, entry t for token t+1) and, if the model cannot answer everywhere, a mask of the
    same shape that is true where it can."""

    @classmethod
    def of(cls, model: Artifact, scores: Artifact) -> TokenLosses:
        """The losses of an expert or a mixture, from its `scores` artifact (``logp`` and, of a mixture, ``answered``)."""

        def load() -> Nll:
            arrays = load_file(scores.file("scores.safetensors"))
            answered = arrays.get("answered")
            return -arrays["logp"], None if answered is None else answered.astype(bool)

        return cls(model.digest, scores.content("scores.safetensors"), load)


@dataclass(frozen=True)
class _Documents:
    """What is evaluated: the documents of all corpora in a row, and where their tokens stand."""

    tokens_D: Int[np.ndarray, " D"]
    group_D: Int[np.ndarray, " D"]
    groups: list[str] | None
    """Values of the column grouped by; None if the groups are the corpora."""
    counted: list[tuple[Bool[np.ndarray, "N T"], Int[np.ndarray, " tokens"]]]
    """For each corpus, which of nll_NT are counted, and the document of each of those."""
    removed: list[str]
    """Ids of documents left out because they were trained on."""


def evaluate_losses(
    store: Store,
    *,
    name: str,
    by: str | None,
    resamples: int,
    corpora: Mapping[str, Artifact],
    models: Mapping[str, Mapping[str, TokenLosses]],
    experts: Sequence[str],
    against: Sequence[str] = (),
    leaks: Artifact | None = None,
    seed: int,
    label: str,
) -> Artifact:
    """Nats a token of every model in every group, with references, differences and intervals.

    Args:
        corpora: blocks of each corpus, by name; these are the groups unless ``by`` names a column.
        models: for each model, its losses on each of the corpora.
        experts: the models among which the references `best_expert` and `oracle` choose.
        against: models that every other one is compared with, such as `single`; `best_expert` always is.
        leaks: from `check_leaks`; documents that were trained on are left out.
        seed: of the resampling.

    Returns:
        artifact `evaluations`; read it with `tables`.

    Raises:
        RequestError: ``by`` is no column, or nothing is left to evaluate.
        WorkError: a loss is not finite.
    """
    names, places = list(models), list(corpora)
    action = Action(
        "evaluations",
        spec={
            "evaluation": "losses",
            "by": by,
            "bootstrap": resamples,
            "seed": seed,
            "experts": [names.index(e) for e in experts],
            "against": [names.index(a) for a in against],
        },
        inputs={
            **{f"blocks.{c}": corpora[p].content("blocks.safetensors", "documents.parquet") for c, p in enumerate(places)},
            **{f"model.{m}.{c}": models[n][p].model for m, n in enumerate(names) for c, p in enumerate(places)},
            **{f"scores.{m}.{c}": models[n][p].digest for m, n in enumerate(names) for c, p in enumerate(places)},
            **({"leaks": leaks.content("evaluation.json")} if leaks is not None else {}),
        },
        libraries=("numpy",),
    )

    def build(folder: Path) -> None:
        documents = _read(name, by, corpora, leaked(leaks) if leaks is not None else frozenset())
        rows = [_sums(documents, model, [models[model][p] for p in places]) for model in names]
        sums_MD = np.stack([r[0] for r in rows])
        answered_MD = np.stack([r[1] for r in rows])
        comparison = compare(
            sums_MD,
            documents.tokens_D,
            answered_MD,
            documents.group_D,
            len(documents.groups or documents.counted),
            experts=action.spec["experts"],
            against=action.spec["against"],
            lowest=True,
            resamples=resamples,
            seed=seed,
        )
        about = {
            "evaluation": "losses",
            "seed": seed,
            "bootstrap": resamples,
            "tokens": int(documents.tokens_D.sum()),
            "documents": int((documents.tokens_D > 0).sum()),
            "removed": documents.removed,
            "data": [corpora[p].digest for p in places],
            "groups": documents.groups,
            "sources": [models[n][places[0]].model for n in names],
        }
        write(folder, about, comparison, _entry)
        save_file(
            {
                "sums": sums_MD,
                "answered": answered_MD.astype(np.uint8),
                "tokens": documents.tokens_D,
                "group": documents.group_D,
            },
            folder / "documents.safetensors",
        )

    return store.make(action, build, label=label)


def _read(evaluation: str, by: str | None, corpora: Mapping[str, Artifact], trained_on: frozenset[str]) -> _Documents:
    tokens, group, values, counted, removed = [], [], [], [], []
    offset = 0
    for c, (name, blocks) in enumerate(corpora.items()):
        arrays = load_file(blocks.file("blocks.safetensors"))
        table = pl.read_parquet(blocks.file("documents.parquet"), glob=False)
        size = len(table)
        kept_D = ~table["content"].is_in(list(trained_on)).to_numpy()
        removed += table["id"].filter(~pl.Series(kept_D)).to_list()
        document_NT = arrays["document"][:, 1:]
        mask_NT = (arrays["target"][:, 1:] != 0) & kept_D[document_NT]
        owner = document_NT[mask_NT]
        counted.append((mask_NT, owner + offset))
        tokens.append(np.bincount(owner, minlength=size))
        if not len(owner):
            cause = "no token of them is predicted" if kept_D.any() else "all of them were trained on"
            raise RequestError(
                "nothing is left to evaluate",
                where=f"evaluation.{evaluation}, corpus {name}",
                found=f"{size} documents; {cause}",
                do="evaluate another split, or leave this corpus out",
            )
        group.append(np.full(size, c))
        if by is not None:
            values += _column(table, evaluation, by, name)
        offset += size
    group_D = np.concatenate(group)
    tokens_D = np.concatenate(tokens)
    groups = None
    if by is not None:
        groups = sorted({v for v, n in zip(values, tokens_D, strict=True) if n})
        place = {v: g for g, v in enumerate(groups)}
        group_D = np.array([place.get(v, 0) for v in values])
    return _Documents(tokens_D, group_D, groups, counted, removed)


def tokens_by_day(blocks: Iterable[Artifact]) -> Mapping[date, float]:
    """Tokens of the documents that have a date, by date."""
    tables = [pl.read_parquet(b.file("documents.parquet"), columns=["time", "tokens"], glob=False) for b in blocks]
    found = pl.concat(t.with_columns(pl.col("time").cast(pl.Date)) for t in tables).drop_nulls()
    return dict(found.group_by("time").agg(pl.col("tokens").sum()).filter(pl.col("tokens") > 0).sort("time").iter_rows())


def groups_left_out(
    evaluation: str, by: str, split: str, documents: Mapping[str, Artifact], blocks: Mapping[str, Artifact]
) -> list[str]:
    """Values of a column that stand in a split of the corpora, and not among the documents evaluated of it."""
    there, found = set[str](), set[str]()
    for corpus, of in documents.items():
        table = pl.read_parquet(of.file("documents.parquet"), glob=False).filter(pl.col("split") == split)
        there |= set(_column(table, evaluation, by, corpus))
        found |= set(_column(pl.read_parquet(blocks[corpus].file("documents.parquet"), glob=False), evaluation, by, corpus))
    return sorted(there - found)


def _column(table: pl.DataFrame, evaluation: str, by: str, corpus: str) -> list[str]:
    """The value of each document in the column grouped by. `year` is that of the time unless there is such a column."""
    if (found := find_column(by, table.columns)) in table.columns:
        column = table[found].cast(pl.String)
    elif by == "year" and table["time"].null_count() < len(table):
        column = table["time"].cast(pl.Date).dt.year().cast(pl.String)
    else:
        own = [c for c in table.columns if c not in ("row", "content", "tokens")]
        raise RequestError(
            f"there is no column {by!r} to group by" + (", and no document has a time" if by == "year" else ""),
            where=f"evaluation.{evaluation}.by, corpus {corpus}",
            expected=", ".join(own),
            do=f"name one of these, or keep the column: corpora.{corpus}.columns: [{by}]",
        )
    return [f"{by}=all" if v == "all" else v for v in column.fill_null("none").to_list()]


def _sums(
    documents: _Documents, name: str, sources: Sequence[TokenLosses]
) -> tuple[Float[np.ndarray, " D"], Bool[np.ndarray, " D"]]:
    """Nats of each document, 0 where the model cannot answer, and where it can."""
    size = len(documents.tokens_D)
    sums_D, gaps_D = np.zeros(size), np.zeros(size)
    for (mask_NT, owner), source in zip(documents.counted, sources, strict=True):
        nll_NT, answered_NT = source.load()
        assert nll_NT.shape == mask_NT.shape, (nll_NT.shape, mask_NT.shape)
        nll = nll_NT[mask_NT].astype(np.float64)
        if answered_NT is not None:
            gap = ~answered_NT[mask_NT]
            gaps_D += np.bincount(owner, weights=gap, minlength=size)
            nll[gap] = 0
        if not np.isfinite(nll).all():
            raise WorkError(
                "a loss is not finite",
                where=f"model {name}",
                found=f"{int((~np.isfinite(nll)).sum())} of {len(nll)} tokens",
                kept="everything that was finished before",
                do="check this model's weights; nothing was published",
            )
        sums_D += np.bincount(owner, weights=nll, minlength=size)
    answered_D = gaps_D == 0
    return sums_D * answered_D, answered_D


def _entry(figure: Figure) -> Entry:
    nll = figure.value
    return {
        "tokens": figure.weight,
        "nll": nll,
        "perplexity": math.exp(nll) if nll is not None and nll < 700 else None,
        "ci95": figure.ci95,
        "documents": figure.documents,
        "skipped": figure.skipped,
    }
