"""Evaluations: losses by group on held-out documents, and multiple choice."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag

from coterie.spec.settings import Count, Name, Spec, Whole


class Losses(Spec):
    """Nats a token and perplexity of every expert and mixture, by group."""

    name: Name
    """Name of the evaluation."""
    corpora: tuple[str, ...]
    """Corpora whose held-out documents are scored; each is a group."""
    split: Literal["valid", "test"] = "test"
    """Split to score."""
    by: str | None = None
    """Group by this column (or `year` of the time column) instead of by corpus."""
    tokens: Count | None = None
    """Most tokens of each corpus to score; all of the split by default."""
    bootstrap: Whole = 1000
    """Resamples of the documents for the 95 % interval."""


class Choices(Spec):
    """Multiple choice by length-normalised log-probability."""

    name: Name
    """Name of the evaluation."""
    choices: str
    """JSONL file with a question, options and the index of the right one."""
    question: str = "question"
    """Column of the question."""
    options: str = "options"
    """Column of the list of options."""
    label: str = "label"
    """Column of the index of the right option."""
    kinds: str | None = "option_kinds"
    """Column of the options' kinds (`correct`, `past`, `future`, `irrelevant`), if there is one."""
    time: str | None = None
    """Column of the date as of which the question is asked."""
    by: str | None = None
    """Group by this column; one group `all` without it."""
    template: str = "{question} "
    """What is put before each option."""
    bootstrap: Whole = 1000
    """Resamples of the questions for the 95 % interval."""


def _which(value: Any) -> str:
    keys = value if isinstance(value, dict) else value.__class__.model_fields
    return "choices" if "choices" in keys else "losses"


Evaluation = Annotated[Annotated[Losses, Tag("losses")] | Annotated[Choices, Tag("choices")], Discriminator(_which)]
