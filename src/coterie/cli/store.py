"""`coterie store ls | verify | prune`."""

from __future__ import annotations

import typer

app = typer.Typer(help="Look after the folder of finished work.", no_args_is_help=True, rich_markup_mode=None)
