"""Tables, figures, one HTML page. Reads OUT/summary.json and OUT/metrics.jsonl; no torch."""

from coterie.report.html_page import write_report
from coterie.report.markdown import markdown
from coterie.report.read_summary import read
from coterie.report.tables import difference_tables, evaluation_tables
from coterie.report.terminal import terminal

__all__ = ["difference_tables", "evaluation_tables", "markdown", "read", "terminal", "write_report"]
