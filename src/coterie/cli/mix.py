"""`coterie mix`."""

from __future__ import annotations

from coterie.cli.options import DryOption, OutOption, RecipeFile, SetOption, StoreOption, run_until

NAME = "mix"


def command(
    recipe: RecipeFile,
    store: StoreOption = None,
    out: OutOption = None,
    set: SetOption = None,
    dry_run: DryOption = False,
) -> None:
    """Train, fit routers and assemble a recipe's mixtures."""
    run_until("mixtures", recipe, store, out, set, dry_run)
