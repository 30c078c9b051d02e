"""The pool: the profiles of all parts merged into one table in the order of keys, clusters assigned, filters applied.

    pool.parquet        a row a document: key, split, tokens, quality, the measures, the axes' columns, cluster, dropped
    ids.parquet         id of each row
    places.npy          [N, 2] part (by digest) and row in it
    duplicates.parquet  pairs: what went, what it was like, how like; also what nearly counted
    facts.json          the funnel

Because rows stand in the order of keys, the table is the same however the files were cut or ordered.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from coterie.corpora.packing import plain_tokenizer
from coterie.corpora.row_plan import USERS, find_column
from coterie.errors import RequestError
from coterie.select.duplicates import planted_recall
from coterie.select.filters import REASONS, mark_near_duplicates, reasons
from coterie.select.measures import COUNTED, estimated
from coterie.select.plan_settings import CLUSTER, GROUP
from coterie.select.profile import Places, Shard, sample, texts_of, tokenizer_file
from coterie.select.select_settings import NearDup, Select, TokenCount
from coterie.select.term_vectors import Space
from coterie.spec.json_types import Figures
from coterie.store import Action, Artifact, Store

_PLANTED = 120
"""Documents of which changed copies are looked for."""


def make_pool(
    store: Store, parts: Sequence[tuple[Artifact, Artifact]], topics: Artifact | None, select: Select, *, label: str
) -> Artifact:
    """Merge the profiles of all parts, assign clusters, filter, find near-duplicates.

    Args:
        parts: (documents, profile) of every part, sorted by digest.
        topics: the fit of the axis `cluster`, if there is one.

    Returns:
        a ``profiles`` artifact.

    Raises:
        RequestError: a column that holds no numbers where numbers are needed; nothing is left after the filters.
    """
    keep = select.keep.model_dump(mode="json", exclude={"contamination": {"path"}})
    count = select.tokens.model_dump(mode="json", exclude={"tokenizer"}) if select.tokens is not None else None
    spec = {"pool": keep, "tokens": count, "quality": select.rank.by, "has_topics": topics is not None}
    inputs = {f"profile.{i}": profile.digest for i, (_, profile) in enumerate(parts)}
    if select.tokens is not None and select.tokens.tokenizer is not None:
        inputs["tokenizer"] = store.digest_file(tokenizer_file(select.tokens.tokenizer))
    if topics is not None:
        inputs["topics"] = topics.digest

    def build(folder: Path) -> None:
        shards = [Shard(*part) for part in parts]
        table, places = _merged(shards, topics, select)
        tokens, error = _count_tokens(table, shards, places, select.tokens, label)
        table = table.with_columns(tokens.alias("tokens"))
        if select.rank.by is not None:
            quality = _numbers(table, select.rank.by, f"corpora.{label}.select.rank.by")
            table = table.with_columns(quality.cast(pl.Float32).alias("quality"))
        if error is not None:
            table = table.with_columns(pl.lit(error).alias("token_error"))
        reason = reasons(table, select.keep)
        pairs = mark_near_duplicates(reason, table, shards, places, select.keep)
        table = table.with_columns(pl.Series("dropped", reason))
        funnel = _funnel(table, shards, label)
        left = np.flatnonzero(reason == 0)[:_PLANTED]
        width = (select.keep.near_dup or NearDup()).bands
        facts = {
            "funnel": funnel,
            "near_pairs": {"dropped": int(pairs["dropped"].sum()), "nearly": int((~pairs["dropped"]).sum())},
            "planted": planted_recall(texts_of(shards, places[left]), 0, *width),
            "token_error": error,
            "parts": len(shards),
        }
        table.select("id").write_parquet(folder / "ids.parquet", compression="zstd")
        _plainly_named(table.drop("id")).write_parquet(folder / "pool.parquet", compression="zstd", statistics=False)
        np.save(folder / "places.npy", places)
        pairs.write_parquet(folder / "duplicates.parquet", compression="zstd")
        (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True))

    return store.make(Action("profiles", spec, inputs), build, label=f"pool of {label}")


def _merged(shards: Sequence[Shard], topics: Artifact | None, select: Select) -> tuple[pl.DataFrame, Places]:
    """All profiles in the order of keys, with clusters, and where each row comes from."""
    tables = [shard.table() for shard in shards]
    table = pl.concat(tables)
    where = [np.stack([np.full(len(t), i), np.arange(len(t))], 1) for i, t in enumerate(tables)]
    places = np.concatenate(where).astype(np.int32)
    if topics is not None:
        space = Space.open(topics.file("topics.npz"), select.axes[CLUSTER].embed)
        cluster = np.concatenate([space.clusters(shard) for shard in shards])
        table = table.with_columns(
            pl.Series(column, np.array(topics.facts[names])[cluster]).cast(pl.Categorical)
            for column, names in ((CLUSTER, "names"), (GROUP, "groups"))
        )
    order = np.lexsort((table["content"].to_numpy(), table["key"].to_numpy()))
    return table[order], places[order]


def _plainly_named(table: pl.DataFrame) -> pl.DataFrame:
    """The corpus's columns by their own names, but for those that are called like one of ours."""
    ours = {c for c in table.columns if not c.startswith(USERS)}
    return table.rename({c: plain for c in table.columns if (plain := c.removeprefix(USERS)) not in ours})


def _funnel(table: pl.DataFrame, shards: Sequence[Shard], label: str) -> Figures:
    """How many documents each step leaves."""
    reason, tokens = table["dropped"].to_numpy(), table["tokens"].to_numpy()
    facts = [shard.documents.facts for shard in shards]
    read = {key: sum(f[key] for f in facts) for key in ("read", "filtered", "quarantined")}
    filtered: Counter[str] = Counter()
    for f in facts:
        filtered.update(f["reasons"])
    count, size = np.bincount(reason, minlength=len(REASONS)), np.bincount(reason, tokens, minlength=len(REASONS))
    steps = {why: {"documents": int(n), "tokens": int(t)} for why, n, t in zip(REASONS, count, size, strict=True)}
    kept = steps.pop("kept")
    dropped = {why: step for why, step in steps.items() if step["documents"]}
    assert read["read"] == read["filtered"] + read["quarantined"] + len(table)
    assert len(table) == count.sum()
    if not kept["documents"]:
        raise RequestError(
            "no document is left to choose from",
            where=f"corpora.{label}.select.keep",
            found=", ".join(f"{step['documents']:,} {why}" for why, step in dropped.items()),
            do="loosen the filters",
        )
    total = {"documents": len(table), "tokens": int(tokens.sum())}
    return {**read, "filtered_why": dict(filtered), **total, "dropped": dropped, "kept": kept}


class Pool:
    """A pool, opened: the table, and what was profiled where."""

    def __init__(self, artifact: Artifact, parts: Sequence[tuple[Artifact, Artifact]]) -> None:
        self.artifact = artifact
        self.shards = [Shard(*part) for part in parts]
        self.table = pl.read_parquet(artifact.file("pool.parquet"), glob=False)
        self.places: Places = np.load(artifact.file("places.npy"))

    @cached_property
    def all_ids(self) -> pl.Series:
        return pl.read_parquet(self.artifact.file("ids.parquet"), glob=False)["id"]

    def ids(self, rows: np.ndarray) -> list[str]:
        return self.all_ids[np.asarray(rows, dtype=np.int64)].to_list()

    @cached_property
    def pairs(self) -> pl.DataFrame:
        """Near-duplicates, and pairs that nearly were: row, like, jaccard, dropped."""
        return pl.read_parquet(self.artifact.file("duplicates.parquet"), glob=False)


# tokens -----------------------------------------------------------------------------------------------------------------


_FOLDS = 5


def _numbers(table: pl.DataFrame, column: str, where: str) -> pl.Series:
    """A column of the corpus that must hold a number in every row.

    Raises:
        RequestError: with the first row that holds none.
    """
    text = table[find_column(USERS + column, table.columns)]
    values = text.cast(pl.Float64, strict=False)
    wrong = values.is_null() | ~values.is_finite()
    if wrong.any():
        row = int(np.flatnonzero(wrong.to_numpy())[0])
        raise RequestError(
            f"{column!r} does not hold a number in every row",
            where=where,
            found=f"{int(wrong.sum()):,} rows without one, such as {table['id'][row]!r}: {text[row]!r}",
            do="name another column, or leave the rows out with where",
        )
    return values


def _count_tokens(
    table: pl.DataFrame, shards: Sequence[Shard], places: Places, count: TokenCount | None, label: str
) -> tuple[pl.Series, float | None]:
    """Tokens of every row, and the mean error of an estimate that was fitted."""
    if count is None:
        return table["tokens"], None
    if count.column is not None:
        return _numbers(table, count.column, f"corpora.{label}.select.tokens.column").cast(pl.Int64), None
    if count.sample is None:
        return table["exact_tokens"], None
    chosen = sample(table["key"].to_numpy(), table["content"].to_numpy(), count.sample, 0)
    texts = texts_of(shards, places[chosen])
    encoded = plain_tokenizer(tokenizer_file(str(count.tokenizer))).encode_batch(texts)
    exact = np.array([len(e.ids) for e in encoded], dtype=float)
    columns = {name: table[name].to_numpy() for name in COUNTED}
    parts = np.stack([values[chosen] for values in columns.values()], 1).astype(float)

    def fitted(rows: np.ndarray) -> np.ndarray:
        scale = np.maximum(exact[rows], 1)
        return np.linalg.lstsq(parts[rows] / scale[:, None], np.ones(len(rows)), rcond=None)[0]

    n = np.arange(len(exact))
    folds = [n % _FOLDS == f for f in range(_FOLDS)]
    apart = [np.abs(parts[fold] @ fitted(n[~fold]) / np.maximum(exact[fold], 1) - 1) for fold in folds]
    tokens = estimated(columns, fitted(n).tolist())
    return pl.Series(tokens), float(np.mean(np.concatenate(apart)))
