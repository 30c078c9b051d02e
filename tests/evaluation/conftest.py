"""Small artifacts in the shape that corpora and experts give them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from coterie.store import Action, Artifact, Store

MakeBlocks = Callable[..., Artifact]


@pytest.fixture
def make_blocks(store: Store) -> MakeBlocks:
    """Blocks with two documents a row and padding behind them: 2 N documents with the given extra columns."""

    def make(
        name: str, blocks: int, seed: int = 0, length: int = 16, times: list | None = None, **columns: list
    ) -> Artifact:
        rng = np.random.default_rng(seed)
        document = np.full((blocks, length), -1, np.int32)
        position = np.zeros((blocks, length), np.int32)
        target = np.zeros((blocks, length), np.uint8)
        for n in range(blocks):
            cut, end = rng.integers(3, length - 5), rng.integers(length - 2, length + 1)
            for d, (first, last) in enumerate([(0, cut), (cut, end)]):
                document[n, first:last] = 2 * n + d
                position[n, first:last] = np.arange(last - first)
                target[n, first + 1 + (n + d) % 2 : last] = 1
        size = 2 * blocks

        def build(folder: Path) -> None:
            save_file(
                {"ids": np.zeros((blocks, length), np.int32), "document": document, "position": position, "target": target},
                folder / "blocks.safetensors",
            )
            pl.DataFrame(
                {
                    "row": range(size),
                    "id": [f"{name}-{i}" for i in range(size)],
                    "content": [f"hash of {name}-{i}" for i in range(size)],
                    "time": pl.Series(times or [None] * size, dtype=pl.Date),
                    "tokens": [int(target[document == i].sum()) for i in range(size)],
                    **columns,
                }
            ).write_parquet(folder / "documents.parquet")

        return store.make(Action("blocks", {"name": name, "seed": seed}, {}), build, label=name)

    return make
