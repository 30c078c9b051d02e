"""Selections: which of a corpus's documents are trained on, by plan."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from coterie.corpora.corpus_settings import Documents
from coterie.select.plan_settings import CLUSTER, GROUP, Axis, Budget, Rank
from coterie.select.strategies import PLAN, STRATEGIES
from coterie.spec.settings import Count, Number, Share, Spec, Whole, check_name


class NearDup(Spec):
    """Near-duplicates by Jaccard similarity of word 5-grams: of each pair, the better document is kept."""

    jaccard: Annotated[Share, Field(ge=0.3)] = 0.7
    """Similarity from which two documents count as one. Candidates come from MinHash and are verified."""
    bands: tuple[Count, Count] = (40, 5)
    """Bands and values in a band of the MinHash. `[20, 6]` is cheaper and finds 92 % of the pairs at 0.7, 99.7 % at 0.8; the
    default finds 99.9 % at 0.7."""


class Against(Spec):
    """Evaluation texts that nothing chosen may repeat."""

    path: str | tuple[str, ...]
    """Files, relative to the recipe."""
    text: str = "text"
    """A column or template."""
    words: Count = 13
    """Length of a run of words that counts as repeated."""
    share: Share = 0.0
    """Largest share of a document's runs that may occur there."""


class Keep(Spec):
    """What a document must be to be chosen from; what is dropped is counted, each with its first reason."""

    tokens: tuple[Whole, Whole] | None = None
    """Least and most tokens."""
    flesch: tuple[Number | None, Number | None] | None = None
    """Least and most reading ease; null for no bound."""
    quality: Share | None = None
    """Least quality."""
    complete: bool = False
    """Drop texts that do not begin like a sentence or heading, or end without a closing mark."""
    near_dup: NearDup | None = NearDup()
    """Drop near-duplicates; null keeps them. Exact duplicates are always dropped."""
    contamination: Against | None = None
    """Drop what repeats evaluation texts."""

    @field_validator("tokens", "flesch")
    @classmethod
    def _in_order(cls, value: Any) -> Any:
        if value is not None and None not in value and value[0] > value[1]:
            raise ValueError(f"[{value[0]}, {value[1]}]: the least is above the most")
        return value


class TokenCount(Spec):
    """How tokens are counted; by default estimated from characters, words and marks, fitted on English prose."""

    column: str | None = None
    """Column that holds the number."""
    tokenizer: str | None = None
    """Folder of a tokenizer, relative to the recipe."""
    sample: Count | None = 512
    """Documents that are tokenized to fit an estimate, whose error is reported; null tokenizes all of them."""

    @model_validator(mode="after")
    def _one(self) -> TokenCount:
        if (self.column is None) == (self.tokenizer is None):
            raise ValueError("say either column or tokenizer")
        return self


class Select(Spec):
    """Choose the training documents by plan. The valid and test splits stay as they are."""

    budget: Budget
    """How much to choose."""
    strategy: Annotated[str, AfterValidator(STRATEGIES.check)] = Field(
        PLAN.tag,
        description=f"Which documents are chosen: {', '.join(f'`{tag}`' for tag in STRATEGIES)}. `plan` does what the keys "
        "below say; the others replace some of them, for comparison.",
    )
    keep: Keep = Keep()
    """Filters."""
    axes: dict[str, Axis] = Field(default_factory=dict)
    """Properties whose shares are planned, by name. `cluster: {k: 19, mix: 0.4}` needs no column."""
    rank: Rank = Rank()
    """Order within a cell of the plan."""
    redundancy: Share | None = None
    """Largest cosine between the topic vectors of two documents of one cell; null does not look."""
    tokens: TokenCount | None = None
    """How tokens are counted."""
    relax: bool = False
    """Choose what comes nearest when the targets cannot be met, instead of refusing."""
    placebo: bool = False
    """Permute the axes' values over the documents first: the control that a study needs."""
    seed: int | None = None
    """Of the draw; the recipe's by default."""
    batch_bytes: Annotated[Count, Field(ge=4096)] = 1 << 19
    """Bytes of text that are profiled at a time: bounds the memory, changes no result."""

    @field_validator("axes", mode="after")
    @classmethod
    def _named(cls, axes: dict[str, Axis]) -> dict[str, Axis]:
        for name, axis in axes.items():
            check_name(name)
            if name != CLUSTER and axis.column is None:
                axes = {**axes, name: axis.model_copy(update={"column": name})}
            fitted = name == CLUSTER and axis.column is None
            for key in ("k", "model", "embed", "groups"):
                if not fitted and getattr(axis, key) != Axis.model_fields[key].default:
                    raise ValueError(f"{name}.{key} is for the fitted clusters (an axis called cluster, without a column)")
            if axis.model is not None and {"k", "groups", "embed"} & axis.model_fields_set:
                raise ValueError(f"{name}.model brings its own k, groups and embedding: take them out")
        if GROUP in axes and CLUSTER in axes and axes[CLUSTER].column is None:
            raise ValueError(f"{GROUP!r} is the fitted clusters' groups: call the axis otherwise, with column: {GROUP}")
        return axes

    @model_validator(mode="after")
    def _within_is_an_axis(self) -> Select:
        if self.rank.within is not None and self.rank.within not in self.axes:
            raise ValueError(
                f"rank.within names no axis: {self.rank.within!r} (there are: {', '.join(self.axes) or 'none'})"
            )
        if self.rank.ranges and self.rank.within is None:
            raise ValueError("rank.ranges needs rank.within")
        return self

    @property
    def topics(self) -> Axis | None:
        """The axis of the fitted clusters. With it, `cluster` and `cluster_group` are theirs."""
        axis = self.axes.get(CLUSTER)
        return axis if axis is not None and axis.column is None else None

    @property
    def columns(self) -> dict[str, str]:
        """Every column of the corpus that is read for the selection, and the key that names it."""
        named = {axis.column: f"axes.{name}.column" for name, axis in self.axes.items() if axis.column is not None}
        if self.rank.by is not None:
            named[self.rank.by] = "rank.by"
        if self.tokens is not None and self.tokens.column is not None:
            named[self.tokens.column] = "tokens.column"
        return named


class Corpus(Documents):
    """Documents with an id, text (or prompt and response) and optional columns."""

    select: Select | None = None
    """Choose the training documents by plan."""
