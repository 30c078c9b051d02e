"""`coterie evaluate`."""

from __future__ import annotations

from coterie.cli.options import DryOption, OutOption, RecipeFile, SetOption, StoreOption, run_until

NAME = "evaluate"


def command(
    recipe: RecipeFile,
    store: StoreOption = None,
    out: OutOption = None,
    set: SetOption = None,
    dry_run: DryOption = False,
) -> None:
    """Train, mix and evaluate."""
    run_until("evaluation", recipe, store, out, set, dry_run)
