"""A toy metric in one file: losses of the documents of one corpus, by whether their length is even."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from coterie.evaluation.losses import TokenLosses, evaluate_losses
from coterie.evaluation.metrics import Evaluated, Evaluating, Metric
from coterie.store import Artifact


class Longest(Metric):
    """Nats a token on one corpus only."""

    kind: Literal["longest"] = Field(default="longest", exclude=True)
    """What is measured."""
    longest: str
    """The corpus."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.longest,)

    def tested(self, run: Evaluating) -> Mapping[str, Artifact]:
        return {self.longest: run.blocks(self.longest, "test")}

    def evaluate(self, run: Evaluating) -> Evaluated:
        tested, models = self.tested(run), run.models([], "corpus")
        artifact = evaluate_losses(
            run.store,
            name=self.name,
            by=None,
            resamples=10,
            corpora=tested,
            models={
                name: {corpus: TokenLosses.of(model, run.scores(name, b)) for corpus, b in tested.items()}
                for name, model in models.items()
            },
            experts=list(run.experts),
            seed=run.seed,
            label=f"evaluation {self.name}",
        )
        return Evaluated(artifact, list(models), self.reads)
