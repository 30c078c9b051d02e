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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from coterie.errors import RequestError
from coterie.select.duplicates import near_duplicates, planted_recall
from coterie.select.measures import estimated
from coterie.select.plan_settings import CLUSTER, GROUP
from coterie.select.profile import Shard, encoder, tokenizer_file
from coterie.select.select_settings import Keep, NearDup, Select, TokenCount
from coterie.select.topics import Space, sample
from coterie.store import Action, Artifact, Store

REASONS = (
    "kept",
    "held out",
    "duplicate id",
    "exact duplicate",
    "too short",
    "too long",
    "hard to read",
    "too easy to read",
    "low quality",
    "incomplete",
    "contaminated",
    "near-duplicate",
    "near-duplicate of held-out text",
)
"""Why a row is not chosen from, by number; the first that applies."""
CODE = {name: number for number, name in enumerate(REASONS)}
_PLANTED = 120


def pool(
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
    inputs = {f"profile.{i}": p.digest for i, (_, p) in enumerate(parts)}
    tokenizer = select.tokens.tokenizer if select.tokens is not None else None
    if tokenizer is not None:
        inputs["tokenizer"] = store.digest_file(tokenizer_file(tokenizer))
    if topics is not None:
        inputs["topics"] = topics.digest

    def build(folder: Path) -> None:
        shards = [Shard(*part) for part in parts]
        space = Space.open(topics, select.axes[CLUSTER]) if topics is not None else None
        names = (topics.facts["names"], topics.facts["groups"]) if topics is not None else None
        _write(folder, shards, space, names, select, label)

    return store.make(Action("profiles", spec, inputs), build, label=f"pool of {label}")


def _write(folder: Path, shards: Sequence[Shard], space: Space | None, names: Any, select: Select, label: str) -> None:
    tables = [shard.table() for shard in shards]
    table = pl.concat(tables)
    places = np.concatenate([np.stack([np.full(len(t), i), np.arange(len(t))], 1) for i, t in enumerate(tables)]).astype(
        np.int32
    )
    if space is not None:
        cluster = np.concatenate([space.clusters(shard) for shard in shards])
        table = table.with_columns(
            pl.Series(CLUSTER, np.array(names[0])[cluster]).cast(pl.Categorical),
            pl.Series(GROUP, np.array(names[1])[cluster]).cast(pl.Categorical),
        )
    order = np.lexsort((table["content"].to_numpy(), table["key"].to_numpy()))
    table, places = table[order], places[order]
    table = _counted(table, shards, places, select.tokens, label)
    if select.rank.by is not None:
        column = _numbers(table, select.rank.by, f"corpora.{label}.select.rank.by")
        table = table.with_columns(column.cast(pl.Float32).alias("quality"))
    reason = reasons(table, select.keep)
    pairs = _near(table, shards, places, reason, select.keep)
    table = table.with_columns(pl.Series("dropped", reason))
    facts = _facts(table, pairs, shards, places, (select.keep.near_dup or NearDup()).bands, label)
    table.select("id").write_parquet(folder / "ids.parquet", compression="zstd")
    _plainly_named(table.drop("id")).write_parquet(folder / "pool.parquet", compression="zstd", statistics=False)
    np.save(folder / "places.npy", places)
    pairs.write_parquet(folder / "duplicates.parquet", compression="zstd")
    (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True))


def _plainly_named(table: pl.DataFrame) -> pl.DataFrame:
    """The corpus's columns by their own names; one that is called like a measure is left out (what it was needed for, tokens
    or quality, has been taken from it)."""
    own = {c: c.removeprefix("column ") for c in table.columns if c.startswith("column ")}
    taken = [c for c, name in own.items() if name in table.columns]
    return table.drop(taken).rename({c: name for c, name in own.items() if c not in taken})


def _numbers(table: pl.DataFrame, name: str, where: str) -> pl.Series:
    values = table[f"column {name}"].cast(pl.Float64, strict=False)
    wrong = values.is_null() | ~values.is_finite()
    if wrong.any():
        row = int(np.flatnonzero(wrong.to_numpy())[0])
        raise RequestError(
            f"{name!r} does not hold a number in every row",
            where=where,
            found=f"{int(wrong.sum()):,} rows without one, such as {table['id'][row]!r}: {table[f'column {name}'][row]!r}",
            do="name another column, or leave the rows out with where",
        )
    return values


def _counted(
    table: pl.DataFrame, shards: Sequence[Shard], places: np.ndarray, count: TokenCount | None, label: str
) -> pl.DataFrame:
    """Tokens as the recipe counts them."""
    if count is None:
        return table
    if count.column is not None:
        column = _numbers(table, count.column, f"corpora.{label}.select.tokens.column")
        return table.with_columns(column.cast(pl.Int64).alias("tokens"))
    if count.sample is None:
        return table.with_columns(pl.col("exact_tokens").alias("tokens"))
    encode = encoder(tokenizer_file(str(count.tokenizer)))
    chosen = sample(table["key"].to_numpy(), table["content"].to_numpy(), count.sample, 0)
    texts = texts_of(shards, places, chosen)
    exact = np.array([len(e.ids) for e in encode.encode_batch(texts)], dtype=float)
    parts = np.stack([table[name].to_numpy()[chosen] for name in ("chars", "words", "marks", "wide")], 1).astype(float)

    def fitted(rows: np.ndarray) -> np.ndarray:
        scale = np.maximum(exact[rows], 1)
        return np.linalg.lstsq(parts[rows] / scale[:, None], np.ones(len(rows)), rcond=None)[0]

    n = np.arange(len(exact))
    apart = [np.abs(parts[n % 5 == f] @ fitted(n[n % 5 != f]) / np.maximum(exact[n % 5 == f], 1) - 1) for f in range(5)]
    columns = {name: table[name].to_numpy() for name in ("chars", "words", "marks", "wide")}
    tokens = estimated(columns, fitted(n).tolist())
    return table.with_columns(
        pl.Series("tokens", tokens), pl.lit(float(np.mean(np.concatenate(apart)))).alias("token_error")
    )


def reasons(table: pl.DataFrame, keep: Keep) -> np.ndarray:
    """The first reason why each row (in the order of keys) is not chosen from; near-duplicates come later."""
    reason = np.zeros(len(table), dtype=np.uint8)

    def drop(rows: np.ndarray, why: str) -> None:
        reason[(reason == 0) & rows] = CODE[why]

    key, content = table["key"].to_numpy(), table["content"].to_numpy()
    drop(table["split"].to_numpy() != 0, "held out")
    again = np.concatenate([[False], key[1:] == key[:-1]]) if len(key) else reason.astype(bool)
    same = np.zeros(len(table), dtype=bool)
    _, first = np.unique(content, return_index=True)
    same[:] = True
    same[first] = False
    drop(same, "exact duplicate")
    drop(again, "duplicate id")
    tokens = table["tokens"].to_numpy()
    if keep.tokens is not None:
        drop(tokens < keep.tokens[0], "too short")
        drop(tokens > keep.tokens[1], "too long")
    if keep.flesch is not None:
        low, high = keep.flesch
        flesch = table["flesch"].to_numpy()
        drop(flesch < (-np.inf if low is None else low), "hard to read")
        drop(flesch > (np.inf if high is None else high), "too easy to read")
    if keep.quality is not None:
        drop(table["quality"].to_numpy() < keep.quality, "low quality")
    if keep.complete:
        drop(~table["complete"].to_numpy(), "incomplete")
    if keep.contamination is not None:
        drop(table["contaminated"].to_numpy() > keep.contamination.share, "contaminated")
    return reason


def _near(table: pl.DataFrame, shards: Sequence[Shard], places: np.ndarray, reason: np.ndarray, keep: Keep) -> pl.DataFrame:
    """Mark near-duplicates in ``reason``; the pairs."""
    schema = {"row": pl.Int64, "like": pl.Int64, "jaccard": pl.Float64, "dropped": pl.Boolean}
    if keep.near_dup is None:
        return pl.DataFrame(schema=schema)
    held = CODE["held out"]
    rows = np.flatnonzero((reason == 0) | (reason == held))
    quality, key = table["quality"].to_numpy()[rows], table["key"].to_numpy()[rows]
    rows = rows[np.lexsort((key, -quality, reason[rows] != held))]
    bands = [shard.bands() for shard in shards]
    part, place = places[rows, 0], places[rows, 1]

    def band(b: int) -> np.ndarray:
        out = np.zeros(len(rows), dtype=np.uint64)
        for s in range(len(shards)):
            mine = part == s
            out[mine] = np.asarray(bands[s][b])[place[mine]]
        return out

    def shorts(at: Sequence[int]) -> np.ndarray:
        return np.stack([shards[s].short[r] for s, r in zip(part[list(at)], place[list(at)], strict=True)])

    found = near_duplicates(
        band,
        shorts,
        lambda at: texts_of(shards, places, rows[at]),
        len(rows),
        keep.near_dup.jaccard,
        reason[rows] == held,
        keep.near_dup.bands[0],
    )
    for row, (like, _) in found.dropped.items():
        of_held = reason[rows[like]] == held
        reason[rows[row]] = CODE["near-duplicate of held-out text" if of_held else "near-duplicate"]
    pairs = [(int(rows[r]), int(rows[o]), j, True) for r, (o, j) in found.dropped.items()]
    pairs += [(int(rows[r]), int(rows[o]), j, False) for o, r, j in found.near]
    return pl.DataFrame(pairs, schema=schema, orient="row").sort("row", "like")


def texts_of(shards: Sequence[Shard], places: np.ndarray, rows: np.ndarray) -> list[str]:
    """What was profiled of some rows of the pool, each compressed batch opened once."""
    rows = np.asarray(rows)
    out: list[str] = [""] * len(rows)
    where = places[rows]
    for s, shard in enumerate(shards):
        mine = np.flatnonzero(where[:, 0] == s)
        mine = mine[np.argsort(where[mine, 1], kind="stable")]
        for i, text in zip(mine, shard.whole(where[mine, 1].tolist()), strict=True):
            out[i] = text
    return out


def _facts(
    table: pl.DataFrame, pairs: pl.DataFrame, shards: Sequence[Shard], places: np.ndarray, width: tuple[int, int], label: str
) -> dict[str, Any]:
    reason, tokens = table["dropped"].to_numpy(), table["tokens"].to_numpy()
    read = {k: sum(s.documents.facts[k] for s in shards) for k in ("read", "filtered", "quarantined")}
    filtered: dict[str, int] = {}
    for shard in shards:
        for why, n in shard.documents.facts["reasons"].items():
            filtered[why] = filtered.get(why, 0) + n
    count, size = np.bincount(reason, minlength=len(REASONS)), np.bincount(reason, tokens, minlength=len(REASONS))
    dropped = {REASONS[i]: {"documents": int(count[i]), "tokens": int(size[i])} for i in range(1, len(REASONS)) if count[i]}
    funnel = {
        **read,
        "filtered_why": filtered,
        "documents": len(table),
        "tokens": int(tokens.sum()),
        "dropped": dropped,
        "kept": {"documents": int(count[0]), "tokens": int(size[0])},
    }
    assert read["read"] == read["filtered"] + read["quarantined"] + len(table)
    assert len(table) == count.sum()
    if not count[0]:
        said = ", ".join(f"{v['documents']:,} {name}" for name, v in dropped.items())
        raise RequestError(
            "no document is left to choose from", where=f"corpora.{label}.select.keep", found=said, do="loosen the filters"
        )
    planted = planted_recall(texts_of(shards, places, np.flatnonzero(reason == 0)[:_PLANTED]), 0, *width)
    error = float(table["token_error"][0]) if "token_error" in table.columns else None
    return {
        "funnel": funnel,
        "near_pairs": {"dropped": int(pairs["dropped"].sum()), "nearly": int((~pairs["dropped"]).sum())},
        "planted": planted,
        "token_error": error,
        "parts": len(shards),
    }


class Pool:
    """A pool, opened: the table, and what was profiled where."""

    def __init__(self, artifact: Artifact, parts: Sequence[tuple[Artifact, Artifact]]) -> None:
        self.artifact = artifact
        self.shards = [Shard(*part) for part in parts]
        self.table = pl.read_parquet(artifact.file("pool.parquet"))
        self.places = np.load(artifact.file("places.npy"))

    def ids(self, rows: np.ndarray) -> list[str]:
        ids = pl.read_parquet(self.artifact.file("ids.parquet"))["id"]
        return ids[np.asarray(rows, dtype=np.int64)].to_list()

    def pairs(self) -> pl.DataFrame:
        return pl.read_parquet(self.artifact.file("duplicates.parquet"))
