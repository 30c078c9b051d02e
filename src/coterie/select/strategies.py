"""The strategies: one declaration each. What `strategy:` takes, what errors list, what is compared and what the docs show
come from here.

A strategy replaces some settings of the request: the axes, or the rank within a cell. Then it goes the way of any plan. One
that does without a plan gives each document a score, and the highest are taken. A strategy of your own is one more
`STRATEGIES.add(Strategy(...))`, in a file that is imported before the recipe is read.

The weights, shares and the formula of `balanced` and `published` are those of the Cosmopedia-100k analysis that motivated
them (docs/concepts/selection.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from coterie.select.plan_settings import CLUSTER, Axis, Rank, named
from coterie.spec.kind import Table, markdown_table

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float64

    from coterie.select.candidates import Candidates

Axes = Mapping[str, Axis]


@dataclass(frozen=True)
class Strategy:
    """One way to choose from the same documents, with the same budget."""

    tag: str
    """Its name in a recipe."""
    sentence: str
    """What it does."""
    axes: Callable[[Axes, Candidates], Axes] | None = None
    """The axes that are planned, from the recipe's; None: the recipe's."""
    rank: Callable[[Rank], Rank] | None = None
    """The order within a cell, from the recipe's; None: the recipe's."""
    score: Callable[[Candidates], Float64[np.ndarray, " N"]] | None = None
    """Of each document: the highest are chosen, without a plan."""
    redundancy: bool = True
    """Whether the recipe's `redundancy` is looked at."""
    paper: str | None = None
    """Where it is described."""

    @property
    def replaces(self) -> tuple[str, ...]:
        """The settings of the recipe that it does not look at, or changes."""
        if self.score is not None:
            return "axes", "rank", "redundancy"
        changed = {"axes": self.axes is not None, "rank": self.rank is not None, "redundancy": not self.redundancy}
        return tuple(name for name, yes in changed.items() if yes)


STRATEGIES: Table[Strategy] = Table("strategy")
"""By tag."""


def docs_table() -> str:
    """The strategies, for the docs."""
    rows = [
        (f"`{made.tag}`", made.sentence, ", ".join(f"`{name}`" for name in made.replaces) or "nothing", made.paper or "")
        for made in STRATEGIES.values()
    ]
    return markdown_table(("`strategy`", "what is chosen", "replaces", "source"), rows)


# the strategies -----------------------------------------------------------------------------------------------------------

FORMAT = "format"
"""The axis that the published analysis balances beside the clusters."""
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


def _published_shares(axes: Axes, pool: Candidates) -> Axes:
    changed = dict(axes)
    if CLUSTER in axes:
        changed[CLUSTER] = axes[CLUSTER].mixed(0.4)
    values = pool.labels[FORMAT].values if FORMAT in axes else []
    if set(_FORMAT_QUALITY) & set(values):
        there = {key: share for key, share in SHARES.items() if any(named(key, value) for value in values)}
        total = sum(there.values())
        target = {key: share / total for key, share in there.items()}
        changed[FORMAT] = axes[FORMAT].model_copy(update={"target": target, "mix": None})
    return changed


def _mixed(mix: float) -> Callable[[Axes, Candidates], Axes]:
    """Every axis with the pool's shares (0), equal ones (1), or between them."""
    return lambda axes, pool: {name: axis.mixed(mix) for name, axis in axes.items()}


def _by_lot(rank: Rank) -> Rank:
    return Rank(quality=0, length=0, temperature=1)


def _published_formula(pool: Candidates) -> Float64[np.ndarray, " N"]:
    import numpy as np

    score = np.zeros(len(pool))
    for name in (FORMAT, CLUSTER):
        if (labels := pool.labels.get(name)) is not None:
            score += 0.4 / np.bincount(labels.code_N, minlength=len(labels.values))[labels.code_N]
    quality = np.full(len(pool), _OTHER_QUALITY)
    if (labels := pool.labels.get(FORMAT)) is not None:
        quality = np.array([_FORMAT_QUALITY.get(v, _OTHER_QUALITY) for v in labels.values])[labels.code_N]
    return score + 0.6 * (1 - np.abs(pool.tokens_N - 800) / 800) * quality


PLAN = Strategy("plan", "What the recipe's axes and rank say.", paper="Deming and Stephan 1940; Csiszar 1975; Cox 1987")
RANDOM = Strategy("random", "Every document alike.", axes=lambda axes, pool: {}, rank=_by_lot, redundancy=False)
for _made in (
    PLAN,
    RANDOM,
    Strategy(
        "quality",
        "The best of the whole pool: quality alone ranks.",
        axes=lambda axes, pool: {},
        rank=lambda rank: rank.model_copy(update={"quality": 1.0, "length": 0.0, "ranges": {}}),
        redundancy=False,
    ),
    Strategy(
        "diversity",
        "Equal shares of every value of every axis; inside a cell, by lot.",
        axes=_mixed(1.0),
        rank=_by_lot,
        paper="Shao et al. 2024, *ClusterClip* (2402.14526)",
    ),
    Strategy(
        "balanced",
        "The published weights (cluster 0.40, quality 0.35, tokens 0.25) as a plan: clusters 0.4 of the way from the pool's "
        "shares to equal ones; formats by the five published shares where the pool has these formats, else by the recipe's.",
        axes=_published_shares,
        rank=lambda rank: rank.model_copy(update={"quality": 0.35, "length": 0.25}),
    ),
    Strategy("proportional", "The pool's own shares of every cell; inside a cell, by lot.", axes=_mixed(0.0), rank=_by_lot),
    Strategy(
        "published",
        "The highest by 0.4 (1/n_format + 1/n_cluster) + 0.6 (1 - |tokens - 800| / 800) format_quality, the literal "
        "formula. Its terms are on scales that differ by a factor of 600, so length and format decide everything.",
        score=_published_formula,
    ),
):
    STRATEGIES.add(_made)
