"""What the figures of an evaluation are: where they stand in a summary, their unit, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from coterie.report import figures


@dataclass(frozen=True)
class Measure:
    """One kind of figure."""

    key: str
    """Of the figure among those of a model and group in a summary."""
    unit: str
    """For the head of a table."""
    lower_is_better: bool
    percent: bool = False
    """It is a share, and shown in percent."""
    column: str = "all"
    """Title of the figure over all groups."""
    also: tuple[str, ...] = ()
    """Keys of further figures of this form, shown over all groups where there are any."""

    def text(self, value: float | None) -> str:
        return (figures.percent if self.percent else figures.nats)(value)

    def signed(self, value: float | None) -> str:
        return (figures.signed_percent if self.percent else figures.signed)(value)

    def tick(self, value: float, *, signed: bool) -> str:
        shown = 100 * value if self.percent else value
        return (f"{shown:+g}" if value else "0").replace("-", "−") if signed else f"{shown:g}"


NLL = Measure("nll", "nats a token, lower is better", lower_is_better=True)
ACCURACY = Measure(
    "accuracy",
    "percent right, higher is better",
    lower_is_better=False,
    percent=True,
    column="right",
    also=("past", "future", "irrelevant"),
)


def stated(measures: Mapping[str, Measure]) -> dict[str, dict[str, object]]:
    """Of some evaluations, what `measure_of` cannot tell by the figures alone."""
    return {name: asdict(measure) for name, measure in measures.items() if measure not in (NLL, ACCURACY)}


def measure_of(summary: Mapping[str, Mapping[str, Mapping]], evaluation: str) -> Measure:
    """What a summary says of an evaluation's figures; losses and accuracies are known by their keys."""
    if (own := summary.get("measures", {}).get(evaluation)) is not None:
        return Measure(**{**own, "also": tuple(own["also"])})
    models = list(summary.get("evaluation", {}).get(evaluation, {}).values())
    models += [d for by in summary.get("differences", {}).get(evaluation, {}).values() for d in by.values()]
    return ACCURACY if any(ACCURACY.key in entry for groups in models for entry in groups.values()) else NLL


def perplexity_of(nats: float | None) -> str | None:
    return None if nats is None else figures.perplexity(math.exp(min(nats, 700)))
