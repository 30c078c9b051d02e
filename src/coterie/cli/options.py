"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from coterie.errors import RequestError

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

JobsOption = Annotated[
    int | None,
    typer.Option("--jobs", metavar="N", min=1, help="Work in N processes at once (with --slurm: in at most N jobs)."),
]
SlurmOption = Annotated[
    list[str] | None,
    typer.Option(
        "--slurm", metavar="KEY=VALUE", help="Work in SLURM jobs, such as --slurm partition=gpu --slurm time=4:00:00."
    ),
]


def slurm_parameters(words: list[str] | None) -> dict[str, str | list[str]] | None:
    """What the words of `--slurm` say; `setup`, lines of shell, may be said more than once."""
    if not words:
        return None
    made: dict[str, str | list[str]] = {}
    setup: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key or (key in made and key != "setup"):
            wrong = "--slurm takes KEY=VALUE" if not equals or not key else "said twice"
            raise RequestError(wrong, where=f"--slurm {word}", do="for example --slurm time=4:00:00")
        if key == "setup":
            setup.append(value)
            made[key] = setup
        else:
            made[key] = value
    return made


def until(stage: str, meaning: str) -> Callable[..., None]:
    """The verb that goes as far as ``stage``: `run`, `mix` and `evaluate` differ in nothing else."""

    def command(
        recipe: RecipeFile,
        store: StoreOption = None,
        out: OutOption = None,
        set: SetOption = None,
        dry_run: DryOption = False,
        jobs: JobsOption = None,
        slurm: SlurmOption = None,
    ) -> None:
        from coterie.run.execute import execute

        execute(recipe, store, out, set or (), dry_run, stage, (), jobs, slurm_parameters(slurm))

    command.__doc__ = meaning
    return command
