"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe, a YAML or JSON file.", show_default=False)]
StoreOption = Annotated[
    Path | None,
    typer.Option("--store", help="Folder of finished work. Default: $COTERIE_STORE, else the user's cache folder."),
]
OutOption = Annotated[Path | None, typer.Option("--out", help="Folder for the results. Default: runs/NAME.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as --set experts.code.train.tokens=1000."),
]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Print the plan: what is cached, what will be made.")]


def run_until(stage: str, recipe: Path, store: Path | None, out: Path | None, settings: list[str] | None, dry: bool) -> None:
    """What `run`, `train`, `mix` and `evaluate` have in common: they differ in how far they go."""
    from coterie.run import run

    run(recipe, store=store, out=out, settings=settings or (), dry_run=dry, until=stage)
