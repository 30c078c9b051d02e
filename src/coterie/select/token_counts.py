"""Tokens of documents as the recipe counts them: a column, a tokenizer, or an estimate fitted to a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from coterie.corpora.row_plan import USERS, find_column
from coterie.errors import RequestError
from coterie.select.measures import COUNTED, estimated
from coterie.select.profile import Places, Shard, encoder, sample, texts_of, tokenizer_file
from coterie.select.select_settings import TokenCount

_FOLDS = 5


def numbers(table: pl.DataFrame, column: str, where: str) -> pl.Series:
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


def count_tokens(
    table: pl.DataFrame, shards: Sequence[Shard], places: Places, count: TokenCount | None, label: str
) -> tuple[pl.Series, float | None]:
    """Tokens of every row, and the mean error of an estimate that was fitted."""
    if count is None:
        return table["tokens"], None
    if count.column is not None:
        return numbers(table, count.column, f"corpora.{label}.select.tokens.column").cast(pl.Int64), None
    if count.sample is None:
        return table["exact_tokens"], None
    chosen = sample(table["key"].to_numpy(), table["content"].to_numpy(), count.sample, 0)
    texts = texts_of(shards, places[chosen])
    encoded = encoder(tokenizer_file(str(count.tokenizer))).encode_batch(texts)
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
