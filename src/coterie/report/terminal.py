"""The tables for a terminal: what a run ends with."""

from __future__ import annotations

from coterie.errors import visible
from coterie.report.read_summary import Summary
from coterie.report.tables import Table, evaluation_tables


def terminal(summary: Summary) -> str:
    """Every evaluation as aligned text; the best model of each column is starred."""
    return visible("\n\n".join(_table(table) for table in evaluation_tables(summary)))


def _table(table: Table) -> str:
    head = ["", *table.columns]
    rows = []
    for row in table.rows:
        name = f"{row.name} ({row.detail})" if row.detail else row.name
        rows.append([name, *(f"{c.text}{'*' if c.best else ' '}" for c in row.cells)])
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in [head, *rows]
    ]
    return "\n".join([f"{table.name} ({table.measure.unit}; * best model)", *(line.rstrip() for line in lines)])
