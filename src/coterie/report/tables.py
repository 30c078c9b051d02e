"""The tables of a report: the same rows for the page, for Markdown and for a terminal.

A table is a list of columns and of rows of cells; what is best in a column is marked among the models that exist (references
are bounds, not models). Rows come sorted, the best first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from coterie.report import figures
from coterie.report.measure import NLL, Measure, measure_of, perplexity_of
from coterie.report.read_summary import Summary

REFERENCES = {"best_expert": "the expert best over all groups", "oracle": "the best expert of each group"}
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
    foresight: float = 0.0
    """Share of what is evaluated whose future it knows: such a row is never the best."""


@dataclass(frozen=True)
class Table:
    """Figures of all models for one evaluation."""

    name: str
    measure: Measure
    columns: list[str]
    """The first is the figure over all groups, the one on the axis."""
    rows: list[Row]
    axis: list[tuple[float, str]] = field(default_factory=list)
    """Ticks: place in percent, and label."""
    zero: float | None = None
    """Place of zero, of differences."""
    reference: str = ""
    """Of differences, what is taken away."""


def kinds(summary: Summary) -> dict[str, str]:
    """What each name in the tables is."""
    named = dict.fromkeys(REFERENCES, "reference") | {"single": "single", "base": "base"}
    return dict.fromkeys(summary.get("slots", {}), "mixture") | named


Models = Mapping[str, Mapping[str, Mapping[str, Any]]]


def evaluation_tables(summary: Summary) -> list[Table]:
    """One table for each evaluation that has figures."""
    kind_of = kinds(summary)
    found = summary.get("evaluation", {})
    ahead = summary.get("foresight", {})
    return [
        _evaluation(name, measure_of(summary, name), models, kind_of, ahead.get(name, {}))
        for name, models in found.items()
        if any(models.values())
    ]


def difference_tables(summary: Summary) -> list[Table]:
    """For each evaluation and reference, how far the mixtures (and `single`) are from it."""
    kind_of = kinds(summary)
    out = []
    for name, models in summary.get("differences", {}).items():
        of_interest = {m: d for m, d in models.items() if kind_of.get(m) in ("mixture", "single", "base")}
        for reference in dict.fromkeys(r for d in of_interest.values() for r in d):
            rows = {m: d[reference] for m, d in of_interest.items() if reference in d}
            ahead = summary.get("foresight", {}).get(name, {})
            out.append(_differences(name, measure_of(summary, name), reference, rows, kind_of, ahead))
    return [t for t in out if any(c.value is not None for r in t.rows for c in r.cells)]


def _evaluation(
    name: str, measure: Measure, models: Models, kind_of: Mapping[str, str], foresight: Mapping[str, float]
) -> Table:
    def cell(model: str, entry: Mapping[str, Any]) -> Cell:
        low, high = entry.get("ci95") or (None, None)
        value, note = entry.get(measure.key), entry.get("expert") if model == "oracle" else None
        other = [perplexity_of(v) if measure == NLL else None for v in (value, low, high)]
        ends = [None if v is None else measure.text(v) for v in (low, high)]
        return Cell(value, measure.text(value), ends[0], ends[1], other[0], other[1], other[2], note)

    groups = _groups(models)
    also = [k for k in measure.also if any(by.get("all", {}).get(k) is not None for by in models.values())]

    def cells(model: str, by: Mapping[str, Mapping[str, Any]]) -> list[Cell]:
        first, *rest = (cell(model, by.get(g, {})) for g in groups)
        more = (by.get("all", {}).get(k) for k in also)
        return [first, *(Cell(value, measure.text(value)) for value in more), *rest]

    rows = {m: cells(m, by) for m, by in models.items()}
    columns = [measure.column, *also, *groups[1:]]
    return _table(Table(name, measure, columns, []), rows, kind_of, models, foresight, unmarked=range(1, 1 + len(also)))


def _differences(
    name: str, measure: Measure, reference: str, models: Models, kind_of: Mapping[str, str], foresight: Mapping[str, float]
) -> Table:
    def cell(entry: Mapping[str, Any]) -> Cell:
        value, interval = entry.get(measure.key), entry.get("ci95")
        ends = [measure.signed(v) for v in interval] if interval else [None, None]
        clear = ""
        if interval and (interval[0] > 0 or interval[1] < 0):
            clear = "better" if (interval[1] < 0) == measure.lower_is_better else "worse"
        return Cell(value, measure.signed(value), ends[0], ends[1], clear=clear)

    groups = _groups(models)
    rows = {m: [cell(by.get(g, {})) for g in groups] for m, by in models.items()}
    table = Table(name, measure, groups, [], zero=0.0, reference=reference)
    return _table(table, rows, kind_of, models, foresight, unmarked=range(len(groups)))


def _groups(models: Models) -> list[str]:
    found = dict.fromkeys(g for by in models.values() for g in by if g != "all")
    return ["all", *found]


def _table(
    table: Table,
    rows: Mapping[str, list[Cell]],
    kind_of: Mapping[str, str],
    models: Models,
    foresight: Mapping[str, float],
    *,
    unmarked: Iterable[int],
) -> Table:
    """The table with its rows, the best first, the best of each column marked, and all on one axis."""
    sign = 1 if table.measure.lower_is_better else -1
    real = [m for m in rows if kind_of.get(m) != "reference" and not foresight.get(m)]
    for c in set(range(len(table.columns))) - set(unmarked):
        values = [sign * v for m in real if (v := rows[m][c].value) is not None]
        for m in real:
            value = rows[m][c].value
            if len(values) > 1 and value is not None and sign * value == min(values):
                rows[m][c] = replace(rows[m][c], best=True)

    ends = {m: by.get("all", {}).get("ci95") or [rows[m][0].value] * 2 for m, by in models.items()}
    span = [v for m in rows for v in (rows[m][0].value, *ends[m]) if v is not None]
    if table.zero is not None:
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
        ahead = foresight.get(m, 0.0)
        detail = _detail(m, is_a, models[m]) + (f", knows the future of {max(100 * ahead, 1):.0f} %" if ahead else "")
        made.append(Row(m, is_a, detail, cells, mark, ahead))
    made.sort(key=lambda r: (r.cells[0].value is None, sign * (r.cells[0].value or 0.0)))
    axis = [(place(t), table.measure.tick(t, signed=table.zero is not None)) for t in figures.ticks(low, high, 4)]
    return replace(table, rows=made, axis=axis, zero=None if table.zero is None else place(0.0))


def _detail(model: str, kind: str, groups: Mapping[str, Any]) -> str:
    """What stands beneath a name: the kind of model, the expert behind a reference, what it could not answer."""
    everything = groups.get("all", {})
    if kind == "reference":
        return everything.get("expert") or REFERENCES[model]
    if everything.get("skipped"):
        answered = everything.get("documents", everything.get("n", 0))
        return f"{kind}, answers {answered:,} of {answered + everything['skipped']:,}"
    return SINGLE if kind == "single" else kind
