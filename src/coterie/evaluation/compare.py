"""Models side by side: a ratio for each model and group, references among the experts, differences, intervals.

Every model, reference and difference is one row of numerators and one of denominators over the documents; a figure is a
ratio of their sums. A difference is the row of differences over the documents that both models answer, so its interval is
paired.

The references are picked on the very documents they are scored on. That flatters them a little, so a mixture that beats
`best_expert` here beats it honestly, and `oracle` is a bound, not a model.

Letters: M models, X rows (models, references, differences), D documents, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from coterie.evaluation.bootstrap import resample

Figure = dict[str, Any]
"""``value`` (None without a document), ``ci95`` (None with fewer than two), ``weight``, ``documents``, ``skipped``."""


@dataclass(frozen=True)
class Comparison:
    """Figures by row; each list holds one figure for each group and, last, one over all of them."""

    models: list[list[Figure]]
    best: int | None
    """The expert that is best over all groups."""
    best_expert: list[Figure]
    oracle: list[int]
    """For each group, the expert that is best there."""
    oracle_expert: list[Figure]
    differences: list[tuple[int, int, list[Figure]]]
    """(model, other, model minus other)."""


def compare(
    value_MD: Float[np.ndarray, "M D"],
    weight_D: Int[np.ndarray, " D"],
    answered_MD: Bool[np.ndarray, "M D"],
    group_D: Int[np.ndarray, " D"],
    groups: int,
    *,
    experts: Sequence[int],
    against: Sequence[int] = (),
    lowest: bool,
    resamples: int,
    seed: int,
) -> Comparison:
    """Compare models over the same documents.

    Args:
        value_MD: what is summed up, such as nats; ignored where a model has no answer.
        weight_D: what it is divided by, such as tokens; documents of weight 0 count nowhere.
        experts: models the references are chosen among: those of them that answer every document.
        against: models that all others are compared with; the best expert always is.
        lowest: whether small is good.
    """
    answered_MD = answered_MD & (weight_D > 0)
    rows = [(np.where(a, v, 0.0), a) for v, a in zip(value_MD, answered_MD, strict=True)]
    models = len(rows)
    whole = [e for e in experts if answered_MD[e].sum() == (weight_D > 0).sum()]
    best, oracle = None, []
    if whole:
        cost_EG = np.stack([np.bincount(group_D, rows[e][0], groups) for e in whole]) * (1 if lowest else -1)
        best = whole[int(cost_EG.sum(1).argmin())]
        oracle = [whole[int(i)] for i in cost_EG.argmin(0)]
        chosen_D = np.array(oracle)[group_D]
        rows += [rows[best], (value_MD[chosen_D, np.arange(len(chosen_D))], answered_MD[best])]
    others = dict.fromkeys([*([] if best is None else [best]), *against])
    pairs = [(m, o) for m in range(models) for o in others if m != o]
    for m, o in pairs:
        both_D = answered_MD[m] & answered_MD[o]
        rows.append((np.where(both_D, value_MD[m] - value_MD[o], 0.0), both_D))

    figures = _figures(rows, weight_D, group_D, groups, resamples=resamples, seed=seed)
    return Comparison(
        models=figures[:models],
        best=best,
        best_expert=figures[models] if whole else [],
        oracle=oracle,
        oracle_expert=figures[models + 1] if whole else [],
        differences=[(m, o, f) for (m, o), f in zip(pairs, figures[len(rows) - len(pairs) :], strict=True)],
    )


def _figures(
    rows: Sequence[tuple[np.ndarray, np.ndarray]],
    weight_D: np.ndarray,
    group_D: np.ndarray,
    groups: int,
    *,
    resamples: int,
    seed: int,
) -> list[list[Figure]]:
    above_XD = np.stack([value for value, _ in rows])
    answered_XD = np.stack([answered for _, answered in rows])
    below_XD = answered_XD * weight_D.astype(np.float64)
    drawn = resample(above_XD, below_XD, group_D, groups, resamples=resamples, seed=seed)
    present_G = np.bincount(group_D, weight_D > 0, groups).astype(int)

    def by_group(row_D: np.ndarray) -> np.ndarray:
        sums_G = np.bincount(group_D, row_D, groups)
        return np.append(sums_G, sums_G.sum())

    out = []
    for x in range(len(rows)):
        above, below, answered = by_group(above_XD[x]), by_group(below_XD[x]), by_group(answered_XD[x]).astype(int)
        present = np.append(present_G, present_G.sum())
        out.append(
            [
                {
                    "value": float(above[g] / below[g]) if below[g] else None,
                    "ci95": drawn.interval(x, g if g < groups else None) if answered[g] > 1 else None,
                    "weight": int(below[g]),
                    "documents": int(answered[g]),
                    "skipped": int(present[g] - answered[g]),
                }
                for g in range(groups + 1)
            ]
        )
    return out
