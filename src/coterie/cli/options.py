"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
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


def until(stage: str, meaning: str) -> Callable[..., None]:
    """The verb that goes as far as ``stage``: `run`, `train`, `mix` and `evaluate` differ in nothing else."""

    def command(
        recipe: RecipeFile,
        store: StoreOption = None,
        out: OutOption = None,
        set: SetOption = None,
        dry_run: DryOption = False,
    ) -> None:
        from coterie.run import run

        run(recipe, store=store, out=out, settings=set or (), dry_run=dry_run, until=stage)

    command.__doc__ = meaning
    return command
