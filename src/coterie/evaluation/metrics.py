"""Evaluations. Each class is all there is to say of one: its name, its settings, what it reads, and how every expert and
mixture is measured by it: losses by group on held-out documents, and multiple choice.

A metric sees the run that it is part of through `Evaluating`, and nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

from pydantic import Field

from coterie.evaluation.questions import Questions, QuestionSettings, read_questions
from coterie.report.measure import ACCURACY, NLL, Measure
from coterie.spec.kind import Kind
from coterie.spec.settings import Count, Name, Whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from coterie.models.device import Precision
    from coterie.store import Artifact, Store


class Evaluating(Protocol):
    """What a metric may ask of the run whose models it measures."""

    store: Store
    seed: int

    @property
    def precision(self) -> Precision:
        """In which weights that do not train are used."""
        ...

    @property
    def experts(self) -> Mapping[str, Artifact]: ...

    @property
    def references(self) -> Sequence[str]:
        """Models that all others are compared with, besides the base where it is measured."""

    @property
    def leaks(self) -> Artifact | None:
        """What is evaluated and was trained on; see `coterie.evaluation.leaks`."""

    def models(self, undated: Sequence[str], what: str, *, base: bool = False) -> Mapping[str, Artifact]:
        """Experts, mixtures and references by name, in order; with ``base`` also what experts branch from.

        Args:
            undated: what of the evaluation has no dates; mixtures that need one are left out, with a note.
            what: what those are, for the note.
        """

    def has_dates(self, corpus: str) -> bool: ...

    def documents(self, corpus: str) -> Artifact: ...

    def blocks(self, corpus: str, split: str, *, tokens: int | None = None) -> Artifact: ...

    def scores(self, model: str, blocks: Artifact) -> Artifact:
        """A model's log-probabilities on blocks."""

    def opener(self, model: str) -> Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
        """Opens a model and its tokenizer."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation, and the names in it in their order."""

    artifact: Artifact
    models: Sequence[str]
    corpora: Sequence[str] = ()


class Metric(Kind):
    """One evaluation of every expert and mixture."""

    noun: ClassVar[str] = "evaluation"
    default_tag: ClassVar[str | None] = "losses"
    measure: ClassVar[Measure] = NLL
    """What its figures are; tables, differences and the report follow from it."""

    name: Name
    """Name of the evaluation."""
    kind: str = Field(exclude=True)
    """What is measured."""
    base: bool = False
    """Measure also what experts branch from, and how far all others are from it."""

    @classmethod
    def tag_in(cls, settings: Mapping[str, object]) -> object:
        """A kind may be told by a key that it alone requires, such as `choices`."""
        if cls.tag_key in settings:
            return settings[cls.tag_key]
        own = (tag for tag in cls.registry if tag in settings)
        return next(own, cls.default_tag)

    @property
    def reads(self) -> tuple[str, ...]:
        """Corpora whose documents it scores."""
        return ()

    def columns_of(self, corpus: str) -> list[str]:
        """Columns of a corpus that it needs."""
        return []

    def tested(self, run: Evaluating) -> Mapping[str, Artifact]:
        """Blocks of held-out documents that it scores, by corpus."""
        return {}

    def questions(self) -> Questions | None:
        """Questions that it asks; RequestError, with file and line, if their file is wrong."""
        return None

    def weight_by_day(self, run: Evaluating) -> Mapping[date, float]:
        """How much of what it asks is of which date, such as tokens; what has no date is left out."""
        return Counter(question.time for question in asked.items if question.time) if (asked := self.questions()) else {}

    def left_out(self, run: Evaluating) -> str | None:
        """What it should cover and does not, for people; None: nothing."""
        return None

    @abstractmethod
    def evaluate(self, run: Evaluating) -> Evaluated:
        """Measure every model."""


class Losses(Metric):
    """Nats a token and perplexity of every expert and mixture, by group."""

    kind: Literal["losses"] = Field(default="losses", exclude=True)
    """What is measured; told by the other keys if left out."""
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

    @property
    def reads(self) -> tuple[str, ...]:
        return self.corpora

    def columns_of(self, corpus: str) -> list[str]:
        return [self.by] if corpus in self.corpora and self.by not in (None, "year") else []

    def tested(self, run: Evaluating) -> Mapping[str, Artifact]:
        return {name: run.blocks(name, self.split, tokens=self.tokens) for name in self.corpora}

    def weight_by_day(self, run: Evaluating) -> Mapping[date, float]:
        from coterie.evaluation.losses import tokens_by_day

        return tokens_by_day(self.tested(run).values())

    def left_out(self, run: Evaluating) -> str | None:
        from coterie.evaluation.losses import groups_left_out

        if self.by is None or self.tokens is None:
            return None
        documents = {name: run.documents(name) for name in self.corpora}
        missing = groups_left_out(self.name, self.by, self.split, documents, self.tested(run))
        return f"{self.by} {', '.join(missing)}: no document among the first {self.tokens:,} tokens" if missing else None

    def evaluate(self, run: Evaluating) -> Evaluated:
        from coterie.evaluation.losses import TokenLosses, evaluate_losses

        tested = self.tested(run)
        models = run.models([name for name in self.corpora if not run.has_dates(name)], "corpus", base=self.base)
        artifact = evaluate_losses(
            run.store,
            name=self.name,
            by=self.by,
            resamples=self.bootstrap,
            corpora=tested,
            models={
                name: {corpus: TokenLosses.of(model, run.scores(name, b)) for corpus, b in tested.items()}
                for name, model in models.items()
            },
            experts=list(run.experts),
            against=[*run.references, *(["base"] if self.base else [])],
            leaks=run.leaks,
            seed=run.seed,
            label=f"evaluation {self.name}",
        )
        return Evaluated(artifact, list(models), self.corpora)


class Choices(QuestionSettings, Metric):
    """Multiple choice by length-normalised log-probability."""

    measure = ACCURACY

    kind: Literal["choices"] = Field(default="choices", exclude=True)
    """What is measured; told by the other keys if left out."""
    bootstrap: Whole = 1000
    """Resamples of the questions for the 95 % interval."""

    def questions(self) -> Questions:
        return read_questions(self)

    def evaluate(self, run: Evaluating) -> Evaluated:
        from coterie.evaluation.choices import Asked, evaluate_choices

        models = run.models([] if self.time else [self.name], "evaluation", base=self.base)
        artifact = evaluate_choices(
            run.store,
            by=self.by,
            resamples=self.bootstrap,
            questions=self.questions(),
            models={name: Asked(model.digest, run.opener(name), run.precision) for name, model in models.items()},
            experts=list(run.experts),
            against=[*run.references, *(["base"] if self.base else [])],
            seed=run.seed,
            label=f"evaluation {self.name}",
        )
        return Evaluated(artifact, list(models))
