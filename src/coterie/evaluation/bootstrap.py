"""How sure a figure is: the Poisson bootstrap of a ratio of sums over documents.

Each resample draws every document Poisson(1) times, independently. It differs from drawing D documents with replacement
only in that the number drawn is not fixed, which a ratio does not feel, and it buys two things: one set of draws serves
every group (a part of it is a resample of the part), and one matrix product serves every model, so that differences between
models are paired without further work. Its price: with fewer than about ten documents intervals are rough, as any
bootstrap's are.

Source: Chamandy, Muralidharan, Najmi, Naidu (2012), Estimating uncertainty for massive data streams.

Letters: M models, D documents, G groups, R resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

_CHUNK = 2_000_000
"""Draws held at once."""


@dataclass(frozen=True)
class Resampled:
    """Sums of every resample, from which the ratio of any union of groups follows."""

    above_RMG: Float[np.ndarray, "R M G"]
    below_RMG: Float[np.ndarray, "R M G"]

    def interval(self, model: int, group: int | None = None, level: float = 0.95) -> list[float] | None:
        """``[lo, hi]`` of the ratio of one model in one group, or over all of them. None without any resample that has
        a document."""
        part = slice(None) if group is None else slice(group, group + 1)
        above_R = self.above_RMG[:, model, part].sum(1)
        below_R = self.below_RMG[:, model, part].sum(1)
        drawn = below_R > 0
        if not drawn.any():
            return None
        tail = (1 - level) / 2
        lo, hi = np.quantile(above_R[drawn] / below_R[drawn], [tail, 1 - tail])
        return [round(float(lo), 6), round(float(hi), 6)]


def resample(
    above_MD: Float[np.ndarray, "M D"],
    below_MD: Float[np.ndarray, "M D"],
    group_D: Int[np.ndarray, " D"],
    groups: int,
    *,
    resamples: int,
    seed: int,
) -> Resampled:
    """Draw the documents again and again and sum up.

    Args:
        above_MD, below_MD: numerator and denominator of each document, such as nats and tokens; both 0 where a model
            has no answer.
        group_D: the group of each document, from 0 to ``groups - 1``.
    """
    rng = np.random.default_rng(seed)
    models, documents = above_MD.shape
    members = [np.flatnonzero(group_D == g) for g in range(groups)]
    both_GDX = [np.concatenate([above_MD[:, d], below_MD[:, d]]).T for d in members]
    out_RGX = np.zeros((resamples, groups, 2 * models))
    step = max(1, _CHUNK // max(documents, 1))
    for start in range(0, resamples, step):
        counts_RD = rng.poisson(1.0, (min(step, resamples - start), documents)).astype(np.float64)
        for g, d in enumerate(members):
            out_RGX[start : start + step, g] = counts_RD[:, d] @ both_GDX[g]
    out_RXG = out_RGX.transpose(0, 2, 1)
    return Resampled(out_RXG[:, :models], out_RXG[:, models:])
