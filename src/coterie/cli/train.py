"""`coterie train`."""

from __future__ import annotations

from coterie.cli.options import DryOption, OutOption, RecipeFile, SetOption, StoreOption, run_until

NAME = "train"


def command(
    recipe: RecipeFile,
    store: StoreOption = None,
    out: OutOption = None,
    set: SetOption = None,
    dry_run: DryOption = False,
) -> None:
    """Train a recipe's experts, each distinct one once."""
    run_until("experts", recipe, store, out, set, dry_run)
