"""`coterie quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coterie.cli.options import DryOption, SetOption, StoreOption

NAME = "quickstart"


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder for texts and results.")] = Path("runs/quickstart"),
    store: StoreOption = None,
    set: SetOption = None,
    dry_run: DryOption = False,
) -> None:
    """Train small experts on text that every machine has, mix them, and compare. Takes about three minutes on 2 cores."""
    from coterie.quickstart.texts import recipe
    from coterie.run import run

    run(recipe(out / "texts"), store=store, out=out, settings=set or (), dry_run=dry_run)
    if dry_run:
        return
    typer.echo(f"""
Next:
  coterie generate {out}/mixtures/learned "On 3 May 2016 " --max-new-tokens 40
  coterie run {out}/texts/time.yaml         # experts by window of time: an answer as of a date knows no later text
  coterie recipe > recipe-reference.md      # every key that a recipe of your own may hold""")
