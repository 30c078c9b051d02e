"""`coterie run`."""

from __future__ import annotations

from coterie.cli.options import DryOption, OutOption, RecipeFile, SetOption, StoreOption, run_until

NAME = "run"


def command(
    recipe: RecipeFile,
    store: StoreOption = None,
    out: OutOption = None,
    set: SetOption = None,
    dry_run: DryOption = False,
) -> None:
    """Do everything a recipe asks for: train, mix, evaluate, report."""
    run_until("report", recipe, store, out, set, dry_run)
