"""The strategies side by side: each is a request of its own on the same pool, with the same budget.

- `random`: every document alike.
- `quality`: the whole pool is one cell; only quality ranks.
- `diversity`: equal shares of every value of every axis; inside a cell, by lot.
- `balanced`: the documented weights (cluster 0.40, quality 0.35, tokens 0.25) as a plan: clusters 0.4 of the way from the
  pool's shares to equal ones, rank quality 0.35 and length 0.25; formats by the five published shares where the pool has
  these formats, else by the recipe's.
- `proportional`: the pool's own shares of every cell; inside a cell, by lot.
- `published`: the literal formula, 0.4 (1/n_format + 1/n_cluster) + 0.6 (1 - |tokens - 800| / 800) format_quality, the
  highest first. Its terms are on different scales, so length and format decide everything; it is here for comparison.

The weights, shares and the formula are those of the Cosmopedia-100k analysis that motivated this
(docs/concepts/selection.md).
"""

from __future__ import annotations

import numpy as np

from coterie.select import pick
from coterie.select.choose import Candidates, Chosen, choose, merits, without
from coterie.select.select_settings import CLUSTER, STRATEGIES, Axis, Rank, Select

FORMAT = "format"
SHARES = {
    "textbook_academic_tone": 0.35,
    "educational_piece": 0.20,
    "textbook_narrative": 0.15,
    "blogpost|wikihow": 0.20,
    "story_*": 0.10,
}
_FORMAT_QUALITY = {
    "textbook_academic_tone": 1.0,
    "educational_piece": 0.9,
    "textbook_narrative": 0.85,
    "blogpost": 0.7,
    "wikihow": 0.75,
    "story_children": 0.6,
    "story_reddit": 0.5,
}
_OTHER_QUALITY = 0.6


def strategy(name: str, select: Select, pool: Candidates) -> Select:
    """The request that a strategy makes of this pool."""
    by_lot = Rank(quality=0, length=0, temperature=1)
    changes: dict[str, object] = {"strategy": "plan", "relax": True}
    if name == "random":
        changes |= {"axes": {}, "rank": by_lot, "redundancy": None}
    elif name == "quality":
        rank = select.rank.model_copy(update={"quality": 1.0, "length": 0.0, "ranges": {}})
        changes |= {"axes": {}, "rank": rank, "redundancy": None}
    elif name == "diversity":
        changes |= {"axes": {n: without(a, mix=1.0) for n, a in select.axes.items()}, "rank": by_lot}
    elif name == "proportional":
        changes |= {"axes": {n: without(a, mix=0.0) for n, a in select.axes.items()}, "rank": by_lot}
    elif name == "balanced":
        rank = select.rank.model_copy(update={"quality": 0.35, "length": 0.25})
        changes |= {"axes": {n: _balanced(n, a, pool) for n, a in select.axes.items()}, "rank": rank}
    elif name == "plan":
        changes = {}
    return select.model_copy(update=changes)


def _balanced(name: str, axis: Axis, pool: Candidates) -> Axis:
    if name == CLUSTER:
        return without(axis, mix=0.4)
    if name == FORMAT and set(_FORMAT_QUALITY) & set(pool.labels[name].values):
        there = {k: s for k, s in SHARES.items() if any(pick.named(k, v) for v in pool.labels[name].values)}
        return without(axis, target={k: s / sum(there.values()) for k, s in there.items()})
    return axis


def selected(pool: Candidates, select: Select, *, seed: int, vectors: pick.Vectors | None = None, label: str) -> Chosen:
    """The selection that a request asks for, whatever its strategy."""
    if select.strategy == "published":
        return published(pool, select)
    return choose(pool, strategy(select.strategy, select, pool), seed=seed, vectors=vectors, label=label)


def side_by_side(pool: Candidates, select: Select, *, seed: int, label: str) -> dict[str, Chosen]:
    """Every strategy on this pool, with this budget."""
    return {
        name: selected(pool, select.model_copy(update={"strategy": name, "redundancy": None}), seed=seed, label=label)
        for name in STRATEGIES
    }


def published(pool: Candidates, select: Select) -> Chosen:
    """The literal formula; the highest scores up to the budget."""
    score = np.zeros(len(pool))
    for name in (FORMAT, CLUSTER):
        if name in pool.labels:
            it = pool.labels[name]
            score += 0.4 / np.bincount(it.code_N, minlength=len(it.values))[it.code_N]
    length = 1 - np.abs(pool.tokens_N - 800) / 800
    quality = np.full(len(pool), _OTHER_QUALITY)
    if FORMAT in pool.labels:
        it = pool.labels[FORMAT]
        quality = np.array([_FORMAT_QUALITY.get(v, _OTHER_QUALITY) for v in it.values])[it.code_N]
    score += 0.6 * length * quality
    order = np.lexsort((pool.key_N, -score))
    if select.budget.tokens is not None:
        size = pool.tokens_N
        at = pick.take_tokens(order, np.array([0, len(order)]), size, np.array([float(select.budget.tokens)]))
    else:
        size = pool.size_N(False)
        at = order[: int(select.budget.docs or 0)]
    parts = merits(pool, Rank(quality=1, length=0), {}) | {"score": score}
    cell = np.zeros(len(pool), dtype=np.uint8)
    total = np.array([float(size.sum())])
    bare = select.model_copy(update={"axes": {}})
    return Chosen(pool, bare, {}, [()], cell, total, np.array([float(size[at].sum())]), None, at, parts)
