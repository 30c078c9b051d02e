"""A toy metric in one file, with figures of its own: at how many tokens a model is sure of the right one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field
from safetensors.numpy import load_file

from coterie.evaluation.compare import Entry, Figure, compare, write
from coterie.evaluation.metrics import Evaluated, Evaluating, Metric
from coterie.report.measure import Measure
from coterie.store import Action, Artifact


class Sure(Metric):
    """Share of the tokens of one corpus to which a model gives at least half of the probability."""

    measure = Measure("sure", "percent of tokens sure, higher is better", lower_is_better=False, percent=True)

    kind: Literal["sure"] = Field(default="sure", exclude=True)
    """What is measured."""
    sure: str
    """The corpus."""

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.sure,)

    def tested(self, run: Evaluating) -> Mapping[str, Artifact]:
        return {self.sure: run.blocks(self.sure, "test")}

    def evaluate(self, run: Evaluating) -> Evaluated:
        blocks, models = self.tested(run)[self.sure], run.models([], "corpus")
        scores = [run.scores(name, blocks) for name in models]
        inputs = {"blocks": blocks.digest} | {f"scores.{m}": s.digest for m, s in enumerate(scores)}

        def build(folder: Path) -> None:
            arrays = load_file(blocks.file("blocks.safetensors"))
            counted_NT = arrays["target"][:, 1:] != 0
            document = arrays["document"][:, 1:][counted_NT]
            tokens_D = np.bincount(document)
            logps = [load_file(s.file("scores.safetensors"))["logp"][counted_NT] for s in scores]
            sure_MD = np.stack([np.bincount(document, logp >= math.log(0.5), len(tokens_D)) for logp in logps])
            all_MD, one_D = np.ones(sure_MD.shape, bool), np.zeros(len(tokens_D), int)
            experts = [m for m, name in enumerate(models) if name in run.experts]
            compared = compare(
                sure_MD, tokens_D, all_MD, one_D, 1, experts=experts, lowest=False, resamples=10, seed=run.seed
            )
            about = {"evaluation": "sure", "seed": run.seed, "bootstrap": 10, "tokens": int(tokens_D.sum())}
            about |= {"documents": len(tokens_D), "data": [blocks.digest], "groups": None}
            write(folder, {**about, "sources": [a.digest for a in models.values()]}, compared, _entry)

        action = Action("evaluations", spec={"evaluation": "sure", "seed": run.seed}, inputs=inputs)
        return Evaluated(run.store.make(action, build, label=f"evaluation {self.name}"), list(models), self.reads)


def _entry(figure: Figure) -> Entry:
    return {"sure": figure.value, "ci95": figure.ci95, "documents": figure.documents, "skipped": figure.skipped}
