"""What happened to one document, in sentences."""

from __future__ import annotations

import difflib

import numpy as np
import polars as pl

from coterie.errors import RequestError
from coterie.select.choose import Chosen
from coterie.select.pool import REASONS
from coterie.select.selection import Profiled


def why(it: Profiled, chosen: Chosen, name: str) -> list[str]:
    """What happened to one document, in sentences.

    Raises:
        RequestError: no document of this id was read.
    """
    ids = pl.read_parquet(it.artifact.file("ids.parquet"))["id"]
    hits = np.flatnonzero((ids == name).to_numpy())
    if not len(hits):
        near = difflib.get_close_matches(name, ids.head(50_000).to_list(), 1)
        raise RequestError(
            f"no document is called {name!r}",
            where="coterie select why",
            found=f"{len(ids):,} documents; quarantined and filtered rows are not among them",
            do=f"did you mean {near[0]!r}?" if near else "check the id",
        )
    lines: list[str] = []
    for row in hits.tolist():
        lines += [*([""] if lines else []), *_why(it, chosen, row, name)]
    return lines


def _why(it: Profiled, chosen: Chosen, row: int, name: str) -> list[str]:
    table = it.pool.table
    said = table.row(row, named=True)
    lines = [
        f"{name}: {said['tokens']:,} tokens, quality {said['quality']:.3f} (reading ease {said['flesch']:.0f}, richness "
        f"{said['richness']:.2f}, repetition {said['repetition']:.2f}, {'complete' if said['complete'] else 'incomplete'})"
    ]
    dropped = REASONS[said["dropped"]]
    if said["dropped"]:
        lines.append(f"dropped: {dropped}")
        pair = it.pool.pairs().filter((pl.col("row") == row) & pl.col("dropped"))
        if len(pair):
            like = it.pool.ids(pair["like"].to_numpy())[0]
            lines.append(f"like {like} (Jaccard {pair['jaccard'][0]:.3f}), which is better or held out")
        return lines
    at = int(np.searchsorted(it.candidates.row_N, row))
    cell = int(chosen.cell_N[at])
    words = " / ".join(chosen.cells[cell]) or "the pool"
    mine = np.flatnonzero(chosen.cell_N == cell)
    score = chosen.parts["score"]
    place = int((score[mine] > score[at]).sum()) + 1
    taken = int(chosen.chosen_N[mine].sum())
    figures = ", ".join(f"{k.replace('_', ' ')} {v[at]:.3f}" for k, v in chosen.parts.items())
    lines.append(f"cell {words}: place {place} of {len(mine)} by score; {taken} are taken ({figures})")
    if chosen.chosen_N[at]:
        lines.append(f"chosen, given out as number {int(np.flatnonzero(chosen.at == at)[0]) + 1} of {len(chosen.at)}")
    else:
        lines.append("not chosen: " + ("its cell gives nothing" if not taken else "others of its cell come first"))
    return lines
