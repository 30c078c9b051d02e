"""The tables of a report: the same rows for the page, for Markdown and for a terminal.

A table is a list of columns and of rows of cells; what is best in a column is marked among the models that exist (references
are bounds, not models). Rows come sorted, the best first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from coterie.report import figures
from coterie.report.read import Summary

REFERENCES = {"best_expert": "best over all groups", "oracle": "the best in each group"}


@dataclass(frozen=True)
class Cell:
    """One figure, with its interval and its other form."""

    value: float | None
    text: str
    low: str | None = None
    high: str | None = None
    other: str | None = None
    """Perplexity, where the figure is in nats."""
    other_low: str | None = None
    other_high: str | None = None
    note: str | None = None
    """The expert behind a reference."""
    best: bool = False
    clear: str = ""
    """Of a difference whose interval leaves out zero: `better` or `worse`."""


@dataclass(frozen=True)
class Mark:
    """Place of a figure and its interval on the axis, in percent of its length."""

    at: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    name: str
    kind: str
    """`expert`, `mixture`, `single`, `base` or `reference`."""
    detail: str
    cells: list[Cell]
    mark: Mark | None


@dataclass(frozen=True)
class Table:
    """Figures of all models for one evaluation."""

    name: str
    kind: str
    """`losses`, `choices`, `differences`."""
    columns: list[str]
    """The first is the figure over all groups, the one on the axis."""
    rows: list[Row]
    axis: list[tuple[float, str]] = field(default_factory=list)
    """Ticks: place in percent, and label."""
    zero: float | None = None
    """Place of zero, of differences."""
    reference: str = ""


def kinds(summary: Summary) -> dict[str, str]:
    """What each name in the tables is."""
    named = dict.fromkeys(REFERENCES, "reference") | {"single": "single", "base": "base"}
    return dict.fromkeys(summary.get("slots", {}), "mixture") | named


def evaluation_tables(summary: Summary) -> list[Table]:
    """One table for each evaluation."""
    kind_of = kinds(summary)
    out = []
    for name, models in summary.get("evaluation", {}).items():
        entries = [e for groups in models.values() for e in groups.values()]
        if any("accuracy" in e for e in entries):
            out.append(_choices(name, models, kind_of))
        elif entries:
            out.append(_losses(name, models, kind_of))
    return out


def difference_tables(summary: Summary) -> list[Table]:
    """For each evaluation and reference, how far the mixtures (and `single`) are from it."""
    kind_of = kinds(summary)
    out = []
    for name, models in summary.get("differences", {}).items():
        of_interest = {m: d for m, d in models.items() if kind_of.get(m) in ("mixture", "single", "base")}
        for reference in dict.fromkeys(r for d in of_interest.values() for r in d):
            rows = {m: d[reference] for m, d in of_interest.items() if reference in d}
            out.append(_differences(name, reference, rows, kind_of))
    return [t for t in out if any(c.value is not None for r in t.rows for c in r.cells)]


def _losses(name: str, models: Mapping[str, Any], kind_of: Mapping[str, str]) -> Table:
    groups = _groups(models)

    def cell(entry: Mapping[str, Any]) -> Cell:
        low, high = entry.get("ci95") or (None, None)
        other = [None if v is None else figures.perplexity(math.exp(min(v, 700))) for v in (entry.get("nll"), low, high)]
        return Cell(
            entry.get("nll"),
            figures.nats(entry.get("nll")),
            *(None if v is None else figures.nats(v) for v in (low, high)),
            *other,
            note=entry.get("expert"),
        )

    rows = {m: ([cell(by.get(g, {})) for g in groups], by.get("all", {}).get("ci95")) for m, by in models.items()}
    return _table(name, "losses", groups, rows, kind_of, models, figures.nats, lowest=True)


def _choices(name: str, models: Mapping[str, Any], kind_of: Mapping[str, str]) -> Table:
    groups = _groups(models)
    wrong = [k for k in ("past", "future", "irrelevant") if any(by.get("all", {}).get(k) is not None for by in models.values())]

    def cell(entry: Mapping[str, Any], key: str = "accuracy") -> Cell:
        low, high = (entry.get("ci95") if key == "accuracy" else None) or (None, None)
        ends = [None if v is None else figures.percent(v) for v in (low, high)]
        return Cell(entry.get(key), figures.percent(entry.get(key)), *ends, note=entry.get("expert") if not wrong else None)

    rows = {}
    for model, by in models.items():
        everything = by.get("all", {})
        cells = [cell(everything), *(cell(everything, k) for k in wrong), *(cell(by.get(g, {})) for g in groups[1:])]
        rows[model] = cells, everything.get("ci95")
    columns = ["right", *wrong, *groups[1:]]
    unmarked = range(1, 1 + len(wrong))
    return _table(name, "choices", columns, rows, kind_of, models, figures.percent, lowest=False, unmarked=unmarked)


def _differences(name: str, reference: str, models: Mapping[str, Any], kind_of: Mapping[str, str]) -> Table:
    groups = _groups(models)
    key = "accuracy" if any("accuracy" in e for by in models.values() for e in by.values()) else "nll"
    text = figures.signed_percent if key == "accuracy" else figures.signed

    def cell(entry: Mapping[str, Any]) -> Cell:
        low, high = entry.get("ci95") or (None, None)
        clear = ""
        if low is not None and (low > 0 or high < 0):
            clear = "better" if (high < 0) == (key == "nll") else "worse"
        ends = [None if v is None else text(v) for v in (low, high)]
        return Cell(entry.get(key), text(entry.get(key)), *ends, clear=clear)

    rows = {m: ([cell(by.get(g, {})) for g in groups], by.get("all", {}).get("ci95")) for m, by in models.items()}
    everything = range(len(groups))
    return _table(
        name, "differences", groups, rows, kind_of, {}, text, lowest=key == "nll", unmarked=everything, reference=reference
    )


def _groups(models: Mapping[str, Any]) -> list[str]:
    found = dict.fromkeys(g for by in models.values() for g in by if g != "all")
    return ["all", *found]


def _table(
    name: str,
    kind: str,
    columns: list[str],
    rows: Mapping[str, tuple[list[Cell], Any]],
    kind_of: Mapping[str, str],
    models: Mapping[str, Any],
    text: Callable[[float], str],
    *,
    lowest: bool,
    unmarked: Iterable[int] = (),
    reference: str = "",
) -> Table:
    sign = 1 if lowest else -1
    marked = {m: list(cells) for m, (cells, _) in rows.items()}
    real = [m for m in rows if kind_of.get(m) != "reference"]
    for c in set(range(len(columns))) - set(unmarked):
        values = [sign * v for m in real if (v := marked[m][c].value) is not None]
        if len(values) > 1:
            for m in real:
                old = marked[m][c]
                if old.value is not None and sign * old.value == min(values):
                    marked[m][c] = Cell(**{**vars(old), "best": True})
    span = [v for m, (cells, ci) in rows.items() for v in (cells[0].value, *(ci or ())) if v is not None]
    if kind == "differences" and span:
        span.append(0.0)
    low, high = (min(span), max(span)) if span else (0.0, 1.0)
    pad = (high - low) * 0.04 or abs(high) * 0.01 or 1.0
    low, high = low - pad, high + pad

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    made = []
    for m, (_, ci) in rows.items():
        at = marked[m][0].value
        mark = None if at is None else Mark(place(at), *(place(v) for v in (ci or (at, at))))
        made.append(Row(m, kind_of.get(m, "expert"), _detail(m, models.get(m, {})), marked[m], mark))
    made.sort(key=lambda r: (r.cells[0].value is None, sign * (r.cells[0].value or 0.0)))
    axis = [(place(t), text(t)) for t in figures.ticks(low, high, 3)]
    zero = place(0.0) if kind == "differences" else None
    return Table(name, kind, columns, made, axis, zero, reference)


def _detail(model: str, groups: Mapping[str, Any]) -> str:
    everything = groups.get("all", {})
    if everything.get("expert"):
        return everything["expert"]
    if model in REFERENCES:
        return REFERENCES[model]
    if everything.get("skipped"):
        answered = everything.get("documents", everything.get("n", 0))
        return f"answers {answered:,} of {answered + everything['skipped']:,}"
    return ""
