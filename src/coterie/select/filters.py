"""Why a document is not chosen from: the filters of `keep:`, exact and near-duplicates. The first reason counts.

`N` documents of the pool, in the order of keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Int32, UInt8

from coterie.select.duplicates import near_duplicates
from coterie.select.profile import Shard, texts_of
from coterie.select.select_settings import Keep

REASONS = (
    "kept, held out, duplicate id, exact duplicate, too short, too long, hard to read, too easy to read, low quality, "
    "incomplete, contaminated, near-duplicate, near-duplicate of held-out text"
).split(", ")
"""By number."""
CODE = {name: number for number, name in enumerate(REASONS)}
HELD_OUT = CODE["held out"]


def reasons(table: pl.DataFrame, keep: Keep) -> UInt8[np.ndarray, " N"]:
    """The number of each row's reason; near-duplicates come later."""
    reason = np.zeros(len(table), dtype=np.uint8)

    def drop(rows: np.ndarray, why: str) -> None:
        reason[(reason == 0) & rows] = CODE[why]

    key, content = table["key"].to_numpy(), table["content"].to_numpy()
    drop(table["split"].to_numpy() != 0, "held out")
    copy = np.ones(len(table), dtype=bool)
    copy[np.unique(content, return_index=True)[1]] = False
    drop(copy, "exact duplicate")
    drop(np.concatenate([np.zeros(min(len(key), 1), bool), key[1:] == key[:-1]]), "duplicate id")
    if keep.tokens is not None:
        tokens = table["tokens"].to_numpy()
        drop(tokens < keep.tokens[0], "too short")
        drop(tokens > keep.tokens[1], "too long")
    if keep.flesch is not None:
        (low, high), flesch = keep.flesch, table["flesch"].to_numpy()
        drop(flesch < (-np.inf if low is None else low), "hard to read")
        drop(flesch > (np.inf if high is None else high), "too easy to read")
    if keep.quality is not None:
        drop(table["quality"].to_numpy() < keep.quality, "low quality")
    if keep.complete:
        drop(~table["complete"].to_numpy(), "incomplete")
    if keep.contamination is not None:
        drop(table["contaminated"].to_numpy() > keep.contamination.share, "contaminated")
    return reason


def mark_near_duplicates(
    reason: UInt8[np.ndarray, " N"],
    table: pl.DataFrame,
    shards: Sequence[Shard],
    places: Int32[np.ndarray, "N 2"],
    keep: Keep,
) -> pl.DataFrame:
    """Give near-duplicates their reason, in place.

    Returns:
        the pairs: row, the row it is like, how like, whether it was dropped for that.
    """
    schema = {"row": pl.Int64, "like": pl.Int64, "jaccard": pl.Float64, "dropped": pl.Boolean}
    if keep.near_dup is None:
        return pl.DataFrame(schema=schema)
    rows = np.flatnonzero((reason == 0) | (reason == HELD_OUT))
    quality, key = table["quality"].to_numpy()[rows], table["key"].to_numpy()[rows]
    rows = rows[np.lexsort((key, -quality, reason[rows] != HELD_OUT))]
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

    def texts(at: Sequence[int]) -> list[str]:
        return texts_of(shards, places[rows[at]])

    threshold, fixed = keep.near_dup.jaccard, reason[rows] == HELD_OUT
    found = near_duplicates(band, shorts, texts, len(rows), threshold, fixed, keep.near_dup.bands[0])
    for row, (like, _) in found.dropped.items():
        reason[rows[row]] = CODE["near-duplicate of held-out text" if fixed[like] else "near-duplicate"]
    pairs = [(int(rows[r]), int(rows[o]), j, True) for r, (o, j) in found.dropped.items()]
    pairs += [(int(rows[r]), int(rows[o]), j, False) for o, r, j in found.near]
    return pl.DataFrame(pairs, schema=schema, orient="row").sort("row", "like")
