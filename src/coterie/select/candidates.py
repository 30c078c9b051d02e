"""What may be chosen: the documents that the filters left, as columns.

`N` documents, `V` values of a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64, UInt64

NONE = "(none)"
"""The value of a document whose column is null."""


@dataclass(frozen=True)
class Labels:
    """One property of all documents: its values, and the number of each document's."""

    values: list[str]
    code_N: Int64[np.ndarray, " N"]

    @classmethod
    def of(cls, column: pl.Series) -> Labels:
        """Values in alphabetical order, so that nothing depends on which came first."""
        text = column.cast(pl.String).fill_null(NONE)
        values = sorted(text.unique().to_list())
        return cls(values, text.cast(pl.Enum(values)).to_physical().to_numpy())

    def take(self, rows: Int64[np.ndarray, " n"]) -> Labels:
        return Labels(self.values, self.code_N[rows])

    def counted(self, size_N: np.ndarray | None = None) -> Float64[np.ndarray, " V"]:
        """Documents of each value, or the sum of their sizes."""
        return np.bincount(self.code_N, size_N, minlength=len(self.values))


@dataclass(frozen=True)
class Candidates:
    """Columns of the documents that nothing dropped."""

    row_N: Int64[np.ndarray, " N"]
    """Row in the pool."""
    key_N: UInt64[np.ndarray, " N"]
    tokens_N: Int64[np.ndarray, " N"]
    quality_N: Float64[np.ndarray, " N"]
    labels: dict[str, Labels]
    """Of each axis, and of every other column with few values, by name."""

    def __len__(self) -> int:
        return len(self.row_N)

    @classmethod
    def of(cls, table: pl.DataFrame, columns: Mapping[str, str]) -> Candidates:
        """The rows of a pool that nothing dropped; ``columns`` are those of its labels."""
        kept = table.filter(pl.col("dropped") == 0) if (table["dropped"] != 0).any() else table
        rows = np.flatnonzero(table["dropped"].to_numpy() == 0)
        labels = {name: Labels.of(kept[column]) for name, column in columns.items()}
        return cls(rows, kept["key"].to_numpy(), kept["tokens"].to_numpy(), kept["quality"].to_numpy(), labels)

    def size_N(self, in_tokens: bool) -> Int64[np.ndarray, " N"]:
        """What a document counts in the budget's unit."""
        return self.tokens_N if in_tokens else np.ones(len(self), dtype=np.int64)
