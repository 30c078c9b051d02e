"""What happened to one document, in sentences."""

from __future__ import annotations

import difflib

import numpy as np
import polars as pl

from coterie.errors import RequestError
from coterie.select.choose import Chosen
from coterie.select.filters import REASONS
from coterie.select.profiled_corpus import Profiled


def why(data: Profiled, chosen: Chosen, name: str) -> list[str]:
    """What happened to one document, in sentences.

    Raises:
        RequestError: no document of this id was read.
    """
    ids = data.pool.all_ids
    rows = np.flatnonzero((ids == name).to_numpy()).tolist()
    if not rows:
        similar = difflib.get_close_matches(name, ids.head(50_000).to_list(), 1)
        raise RequestError(
            f"no document is called {name!r}",
            where="coterie select why",
            found=f"{len(ids):,} documents; quarantined and filtered rows are not among them",
            do=f"did you mean {similar[0]!r}?" if similar else "check the id",
        )
    lines: list[str] = []
    for row in rows:
        measured = data.pool.table.row(row, named=True)
        if lines:
            lines.append("")
        lines.append(
            f"{name}: {measured['tokens']:,} tokens, quality {measured['quality']:.3f} (reading ease "
            f"{measured['flesch']:.0f}, richness {measured['richness']:.2f}, repetition {measured['repetition']:.2f}, "
            f"{'complete' if measured['complete'] else 'incomplete'})"
        )
        lines += _dropped(data, row, measured["dropped"]) if measured["dropped"] else _placed(data, chosen, row)
    return lines


def _dropped(data: Profiled, row: int, reason: int) -> list[str]:
    lines = [f"dropped: {REASONS[reason]}"]
    pair = data.pool.pairs.filter((pl.col("row") == row) & pl.col("dropped"))
    if len(pair):
        like = data.pool.ids(pair["like"].to_numpy())[0]
        lines.append(f"like {like} (Jaccard {pair['jaccard'][0]:.3f}), which is better or held out")
    return lines


def _placed(data: Profiled, chosen: Chosen, row: int) -> list[str]:
    at = int(np.searchsorted(data.candidates.row_N, row))
    cell = int(chosen.cell_N[at])
    mine, score = np.flatnonzero(chosen.cell_N == cell), chosen.parts["score"]
    place = int((score[mine] > score[at]).sum()) + 1
    taken = int(chosen.chosen_N[mine].sum())
    figures = ", ".join(f"{name.replace('_', ' ')} {values[at]:.3f}" for name, values in chosen.parts.items())
    named = " / ".join(chosen.cells[cell]) or "the pool"
    if chosen.chosen_N[at]:
        outcome = f"chosen, given out as number {int(np.flatnonzero(chosen.at == at)[0]) + 1} of {len(chosen.at)}"
    else:
        outcome = "not chosen: " + ("others of its cell come first" if taken else "its cell gives nothing")
    return [f"cell {named}: place {place} of {len(mine)} by score; {taken} are taken ({figures})", outcome]
