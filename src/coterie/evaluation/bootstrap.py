"""How sure a figure is: the Poisson bootstrap of a ratio of sums over documents.

Each resample draws every document Poisson(1) times, independently. It differs from drawing D documents with replacement
only in that the number drawn is not fixed, which a ratio does not feel, and it buys two things: one set of draws serves
every group (a part of it is a resample of the part), and one matrix product serves every model, so that differences between
models are paired without further work. Its price: with fewer than about ten documents intervals are rough, as any
bootstrap's are.

Over all groups each keeps its share (a stratified bootstrap): which documents were drawn is chance, how many tokens of each
corpus a recipe evaluates is not. Else one long document more or less would move the mix of corpora, and with it every loss.

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
    """Sums of the documents, and of every resample of them."""

    above_MG: Float[np.ndarray, "M G"]
    below_MG: Float[np.ndarray, "M G"]
    above_RMG: Float[np.ndarray, "R M G"]
    below_RMG: Float[np.ndarray, "R M G"]

    def interval(self, model: int, group: int | None = None, level: float = 0.95) -> list[float] | None:
        """``[lo, hi]`` of the ratio of one model in one group, or over all of them. None without a document or a resample.
        A group that a resample misses altogether has its own ratio there."""
        groups = np.arange(self.below_MG.shape[1]) if group is None else np.array([group])
        groups = groups[self.below_MG[model, groups] > 0]
        if not len(groups) or not len(self.above_RMG):
            return None
        below_G = self.below_MG[model, groups]
        below_RG = self.below_RMG[:, model, groups]
        missed_RG = below_RG == 0
        ratio_RG = self.above_RMG[:, model, groups] / np.where(missed_RG, 1, below_RG)
        ratio_RG = np.where(missed_RG, self.above_MG[model, groups] / below_G, ratio_RG)
        tail = (1 - level) / 2
        lo, hi = np.quantile(ratio_RG @ (below_G / below_G.sum()), [tail, 1 - tail])
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
    whole_XG, out_RXG = np.stack([both_DX.sum(0) for both_DX in both_GDX], axis=1), out_RGX.transpose(0, 2, 1)
    return Resampled(whole_XG[:models], whole_XG[models:], out_RXG[:, :models], out_RXG[:, models:])
