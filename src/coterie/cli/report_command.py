"""`coterie report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

NAME = "report"


def command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of a finished run.", show_default=False)],
    format: Annotated[
        Literal["html", "md"], typer.Option("--format", help="html writes OUT/report.html; md prints Markdown.")
    ] = "html",
) -> None:
    """Make the report of a finished run again, from its summary alone."""
    from coterie import report

    if format == "md":
        typer.echo(report.markdown(out))
    else:
        typer.echo(report.write_report(out))
