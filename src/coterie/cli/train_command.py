"""`coterie train`."""

from __future__ import annotations

from typing import Annotated

import typer

from coterie.cli.options import (
    DryOption,
    JobsOption,
    OutOption,
    RecipeFile,
    SetOption,
    SlurmOption,
    StoreOption,
    slurm_parameters,
)

NAME = "train"


def command(
    recipe: RecipeFile,
    store: StoreOption = None,
    out: OutOption = None,
    set: SetOption = None,
    dry_run: DryOption = False,
    jobs: JobsOption = None,
    slurm: SlurmOption = None,
    expert: Annotated[
        list[str] | None,
        typer.Option("--expert", metavar="NAME", help="Only this expert (or base), and what it branches from."),
    ] = None,
) -> None:
    """Train a recipe's experts, each distinct one once."""
    from coterie.run.execute import execute

    execute(recipe, store, out, set or (), dry_run, "experts", expert or (), jobs, slurm_parameters(slurm))
