"""The tables of a report: the same rows for the page, for Markdown and for a terminal.

A table is a list of columns and of rows of cells; what is best in a column is marked among the models that exist (references
are bounds, not models). Rows come sorted, the best first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from coterie.report import figures
from coterie.report.read_summary import Summary

REFERENCES = {"best_expert": "the expert best over all groups", "oracle": "the best expert of each group"}
UNITS = {"losses": "nats a token, lower is better", "choices": "percent right, higher is better"}
SINGLE = "one model on all the data"


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


Models = Mapping[str, Mapping[str, Mapping[str, Any]]]
KINDS = ("past", "future", "irrelevant")


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


def _cell(entry: Mapping[str, Any], key: str, text: Callable[[float | None], str], **more: Any) -> Cell:
    low, high = (text(v) for v in entry["ci95"]) if entry.get("ci95") else (None, None)
    return Cell(entry.get(key), text(entry.get(key)), low, high, **more)


def _losses(name: str, models: Models, kind_of: Mapping[str, str]) -> Table:
    def cell(model: str, entry: Mapping[str, Any]) -> Cell:
        values = (entry.get("nll"), *(entry.get("ci95") or (None, None)))
        other, low, high = (None if v is None else figures.perplexity(math.exp(min(v, 700))) for v in values)
        note = entry.get("expert") if model == "oracle" else None
        return _cell(entry, "nll", figures.nats, other=other, other_low=low, other_high=high, note=note)

    groups = _groups(models)
    rows = {m: [cell(m, by.get(g, {})) for g in groups] for m, by in models.items()}
    return _table(name, "losses", groups, rows, kind_of, models, tick=lambda v: f"{v:g}")


def _choices(name: str, models: Models, kind_of: Mapping[str, str]) -> Table:
    wrong = [k for k in KINDS if any(by.get("all", {}).get(k) is not None for by in models.values())]
    groups = _groups(models)[1:]

    def cells(by: Mapping[str, Mapping[str, Any]]) -> list[Cell]:
        everything = by.get("all", {})
        kinds = [Cell(everything.get(k), figures.percent(everything.get(k))) for k in wrong]
        right = [_cell(by.get(g, {}), "accuracy", figures.percent) for g in ["all", *groups]]
        return [right[0], *kinds, *right[1:]]

    return _table(
        name,
        "choices",
        ["right", *wrong, *groups],
        {m: cells(by) for m, by in models.items()},
        kind_of,
        models,
        tick=lambda v: f"{100 * v:g}",
        lowest=False,
        unmarked=range(1, 1 + len(wrong)),
    )


def _differences(name: str, reference: str, models: Models, kind_of: Mapping[str, str]) -> Table:
    key = "accuracy" if any("accuracy" in e for by in models.values() for e in by.values()) else "nll"
    scale, text = (100, figures.signed_percent) if key == "accuracy" else (1, figures.signed)

    def cell(entry: Mapping[str, Any]) -> Cell:
        low, high = entry.get("ci95") or (0, 0)
        clear = ""
        if low > 0 or high < 0:
            clear = "better" if (high < 0) == (key == "nll") else "worse"
        return _cell(entry, key, text, clear=clear)

    groups = _groups(models)
    return _table(
        name,
        "differences",
        groups,
        {m: [cell(by.get(g, {})) for g in groups] for m, by in models.items()},
        kind_of,
        models,
        tick=lambda v: f"{scale * v:+g}".replace("-", "−") if v else "0",
        lowest=key == "nll",
        unmarked=range(len(groups)),
        reference=reference,
    )


def _groups(models: Models) -> list[str]:
    found = dict.fromkeys(g for by in models.values() for g in by if g != "all")
    return ["all", *found]


def _table(
    name: str,
    kind: str,
    columns: list[str],
    rows: Mapping[str, list[Cell]],
    kind_of: Mapping[str, str],
    models: Models,
    *,
    tick: Callable[[float], str],
    lowest: bool = True,
    unmarked: Iterable[int] = (),
    reference: str = "",
) -> Table:
    sign = 1 if lowest else -1
    real = [m for m in rows if kind_of.get(m) != "reference"]
    for c in set(range(len(columns))) - set(unmarked):
        values = [sign * v for m in real if (v := rows[m][c].value) is not None]
        for m in real:
            value = rows[m][c].value
            if len(values) > 1 and value is not None and sign * value == min(values):
                rows[m][c] = replace(rows[m][c], best=True)

    ends = {m: by.get("all", {}).get("ci95") or [rows[m][0].value] * 2 for m, by in models.items()}
    span = [v for m in rows for v in (rows[m][0].value, *ends[m]) if v is not None]
    if kind == "differences":
        span.append(0.0)
    low, high = (min(span), max(span)) if span else (0.0, 1.0)
    pad = (high - low) * 0.04 or 0.05
    low, high = low - pad, high + pad

    def place(value: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    made = []
    for m, cells in rows.items():
        at, is_a = cells[0].value, kind_of.get(m, "expert")
        mark = None if at is None else Mark(place(at), *(place(v) for v in ends[m]))
        made.append(Row(m, is_a, _detail(m, is_a, models[m]), cells, mark))
    made.sort(key=lambda r: (r.cells[0].value is None, sign * (r.cells[0].value or 0.0)))
    axis = [(place(t), tick(t)) for t in figures.ticks(low, high, 4)]
    return Table(name, kind, columns, made, axis, place(0.0) if kind == "differences" else None, reference)


def _detail(model: str, kind: str, groups: Mapping[str, Any]) -> str:
    """What stands beneath a name: the kind of model, the expert behind a reference, what it could not answer."""
    everything = groups.get("all", {})
    if kind == "reference":
        return everything.get("expert") or REFERENCES[model]
    if everything.get("skipped"):
        answered = everything.get("documents", everything.get("n", 0))
        return f"{kind}, answers {answered:,} of {answered + everything['skipped']:,}"
    return SINGLE if kind == "single" else kind
