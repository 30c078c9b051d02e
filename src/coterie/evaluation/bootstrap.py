"""How sure a figure is: the Poisson bootstrap of a ratio of sums over documents.

Each resample draws every document Poisson(1) times, independently. It differs from drawing D documents with replacement only
in that the number drawn is not fixed, which a ratio does not feel, and one matrix product then serves every model, so that
differences between models are paired without further work. Its price: with fewer than about ten documents intervals are
rough, as any bootstrap's are.

Over all groups each keeps its share (a stratified bootstrap): which documents were drawn is chance, how many tokens of each
corpus a recipe evaluates is not. Else one long document more or less would move the mix of corpora, and with it every loss.

Source: Chamandy, Muralidharan, Najmi, Naidu (2012), Estimating uncertainty for massive data streams.

Letters: X rows (models and differences), D documents, G groups, R resamples.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

_CHUNK = 2_000_000
"""Draws held at once."""


def intervals(
    above_XD: Float[np.ndarray, "X D"],
    below_XD: Float[np.ndarray, "X D"],
    group_D: Int[np.ndarray, " D"],
    groups: int,
    *,
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> Float[np.ndarray, "X G+1 2"]:
    """Ends of the interval of ``above / below`` in each group and, last, over all of them. NaN where there is nothing.

    Args:
        above_XD, below_XD: numerator and denominator of each document, such as nats and tokens; both 0 where a model
            has no answer.
        group_D: the group of each document, from 0 to ``groups - 1``.
    """
    rng = np.random.default_rng(seed)
    tails = [(1 - level) / 2, (1 + level) / 2]
    ends_XG2 = np.full((len(above_XD), groups + 1, 2), np.nan)
    if not resamples:
        return ends_XG2
    total_RX = np.zeros((resamples, len(above_XD)))
    weight_X = below_XD.sum(1)
    for g in range(groups):
        members = np.flatnonzero(group_D == g)
        some = below_XD[:, members].sum(1) > 0
        if some.any():
            ratio_RX = _resampled(above_XD[some][:, members], below_XD[some][:, members], resamples, rng)
            ends_XG2[some, g] = np.quantile(ratio_RX, tails, axis=0).T
            total_RX[:, some] += ratio_RX * (below_XD[some][:, members].sum(1) / weight_X[some])
    ends_XG2[weight_X > 0, -1] = np.quantile(total_RX[:, weight_X > 0], tails, axis=0).T
    return ends_XG2


def _resampled(
    above_XD: Float[np.ndarray, "X D"], below_XD: Float[np.ndarray, "X D"], resamples: int, rng: np.random.Generator
) -> Float[np.ndarray, "R X"]:
    """The ratio in each resample; a row whose documents it misses altogether has its own ratio there."""
    documents = above_XD.shape[1]
    ratio_RX = np.empty((resamples, len(above_XD)))
    step = max(1, _CHUNK // documents)
    for start in range(0, resamples, step):
        counts_RD = rng.poisson(1.0, (min(step, resamples - start), documents)).astype(np.float64)
        below_RX = counts_RD @ below_XD.T
        missed_RX = below_RX == 0
        ratio_RX[start : start + step] = counts_RD @ above_XD.T / np.where(missed_RX, 1, below_RX)
        ratio_RX[start : start + step] += missed_RX * (above_XD.sum(1) / below_XD.sum(1))
    return ratio_RX
