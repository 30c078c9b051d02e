"""Tables, figures, one HTML page. Reads OUT/summary.json and OUT/metrics.jsonl; no torch."""

from coterie.report.markdown import markdown
from coterie.report.page import write_report
from coterie.report.read import read
from coterie.report.tables import difference_tables, evaluation_tables

__all__ = ["difference_tables", "evaluation_tables", "markdown", "read", "write_report"]
