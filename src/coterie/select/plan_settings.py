"""What a plan is made of: how much is chosen, the properties whose shares are planned, the order within them."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field, model_validator

from coterie.spec.settings import Count, Number, Positive, Share, Spec, Whole

CLUSTER, GROUP = "cluster", "cluster_group"
"""Columns that a selection with fitted clusters adds: a document's topic cluster, and the group of clusters it is in."""


class Budget(Spec):
    """How much is chosen: tokens or documents."""

    tokens: Count | None = None
    """Number of tokens, met to within half a document."""
    docs: Count | None = None
    """Number of documents, met exactly."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Budget:
        if (self.tokens is None) == (self.docs is None):
            raise ValueError("say exactly one of tokens, docs")
        return self

    @property
    def in_tokens(self) -> bool:
        return self.tokens is not None

    @property
    def size(self) -> int:
        """How much, in its unit."""
        return self.tokens or self.docs or 0

    @property
    def unit(self) -> str:
        return "tokens" if self.in_tokens else "documents"


class Axis(Spec):
    """One property that the plan balances: topic clusters, or a column."""

    column: str | None = None
    """Column of the corpus. The axis called `cluster` without a column is the fitted topic clusters."""
    k: Count | Literal["auto"] = 19
    """Number of clusters; `auto` takes the best of several by silhouette."""
    model: str | None = None
    """Folder of clusters fitted earlier (`topics` of a profile): new data is assigned to them."""
    embed: str | None = None
    """Folder of a local sentence-embedding model; without it, clusters come from the words (TF-IDF, SVD)."""
    groups: Count | None = None
    """Number of groups that near clusters are put into, for experts `per: cluster_group`."""
    target: dict[str, Share] | None = None
    """Share of each value. Keys may be alternatives (`blogpost|wikihow`) and globs (`story_*`); shares must sum to 1.
    What no key names is not chosen."""
    mix: Share | None = None
    """Without a target: 0 gives every value the pool's share, 1 equal shares, between them the mean. 0 by default."""
    weight: Positive = 1.0
    """How much a shortfall on this axis counts when not all targets can be met."""

    @model_validator(mode="after")
    def _one_kind_of_target(self) -> Axis:
        if self.target is not None:
            if self.mix is not None:
                raise ValueError("give either target or mix")
            if not self.target:
                raise ValueError("an empty target")
            total = sum(self.target.values())
            if abs(total - 1) > 1e-6:
                raise ValueError(f"the shares sum to {total:.6g}: they must sum to 1")
        return self

    def mixed(self, mix: float) -> Axis:
        """This axis with another mix, and without a target."""
        return self.model_copy(update={"target": None, "mix": mix})


class Rank(Spec):
    """Which documents of a cell are taken first."""

    quality: Annotated[Number, Field(ge=0)] = 0.35
    """Weight of the quality's mid-rank."""
    length: Annotated[Number, Field(ge=0)] = 0.25
    """Weight of the length score: 1 inside the range, falling off outside."""
    by: str | None = None
    """Numeric column that holds the quality; by default the profile's own (readability, richness, no repetition,
    completeness)."""
    within: str | None = None
    """Axis within whose values quality is ranked and length ranges hold; over all documents by default."""
    ranges: dict[str, tuple[Whole, Whole]] = Field(default_factory=dict)
    """Length range in tokens of each value of `within` (globs allowed); by default its middle half in the pool."""
    temperature: Annotated[Number, Field(ge=0)] = 0.2
    """0 takes the best; larger draws are more random (Gumbel top-k on the score divided by this)."""


def named(key: str, value: str) -> bool:
    """Whether a key (`blogpost|wikihow`, `story_*`) names a value."""
    return key == value or any(fnmatchcase(value, part) for part in key.split("|"))


def cluster_names(k: int) -> list[str]:
    """c00, c01, ..."""
    return [f"c{i:0{max(2, len(str(k - 1)))}}" for i in range(k)]


def group_names(groups: int) -> list[str]:
    """g0, g1, ..."""
    return [f"g{i:0{len(str(groups - 1))}}" for i in range(groups)]
