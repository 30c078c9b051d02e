"""The report as Markdown: the same tables, for a terminal, an issue or a README."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from coterie.errors import visible
from coterie.report import figures
from coterie.report.html_page import headlines
from coterie.report.read_summary import read, trained_models
from coterie.report.tables import Cell, Table, difference_tables, evaluation_tables


def markdown(out: str | Path) -> str:
    """The report of a finished run.

    Raises:
        RequestError: OUT holds no summary.
    """
    summary = read(Path(out))
    lines = [f"# {_plain(summary.get('name', 'run'))}", ""]
    if reuse := summary.get("reuse"):
        lines += [
            "Experts: " + ", ".join(f"{reuse[k]} {k}" for k in ("requested", "distinct", "trained", "reused")) + ".",
            "",
        ]
    for head in headlines(summary):
        values = "; ".join(f"{what} ({name}) {value}" for what, value, name in head.figures)
        lines += [_plain(f"{head.evaluation}, nats a token over all: {values}."), ""]
    for table in evaluation_tables(summary):
        lines += [f"## {_plain(table.name)}", "", f"{table.measure.unit}; 95 % interval in brackets; the best in bold.", ""]
        lines += _table(table)
    for table in difference_tables(summary):
        lines += [f"## {_plain(table.name)}: difference to {_plain(table.reference)}", ""]
        lines += [*_table(table)]
    trained = trained_models(summary)
    if trained:
        shown = (("parameters", figures.count), ("tokens", figures.count), ("loss", figures.nats))
        rows = [[m.get("name", key), *(text(m.get(column)) for column, text in shown)] for key, m in trained.items()]
        lines += ["## What was trained", "", *_rows(["name", *(column for column, _ in shown)], rows), ""]
    lines += [f"- {_plain(note)}" for note in summary.get("notes", [])]
    return "\n".join(lines).rstrip() + "\n"


def _table(table: Table) -> list[str]:
    rows = []
    for row in table.rows:
        name = row.name + (f" ({row.detail})" if row.detail else "")
        rows.append([name, *(_cell(c, i == 0) for i, c in enumerate(row.cells))])
    return [*_rows(["model", *table.columns], rows), ""]


def _cell(cell: Cell, with_interval: bool) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text} [{cell.low}, {cell.high}]" if with_interval and cell.low else text


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(_plain(c) for c in cells) + " |"

    return [line(head), "|---|" + "---:|" * (len(head) - 1), *map(line, rows)]


def _plain(text: str) -> str:
    """One line, without what would end a cell or begin a tag."""
    return visible(" ".join(str(text).split())).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
