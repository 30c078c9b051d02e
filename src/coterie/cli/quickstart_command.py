"""`coterie quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coterie.cli.options import DryOption, SetOption, StoreOption
from coterie.spec.json_types import Figures

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

    done = run(recipe(out / "texts"), store=store, out=out, settings=set or (), dry_run=dry_run)
    if dry_run:
        return
    typer.echo(f"""{taken_out(done.summary)}
Next:
  coterie generate {out}/mixtures/all-three "On 3 May 2016 " --max-new-tokens 40
  coterie run {out}/texts/time.yaml         # experts by window of time: an answer as of a date knows no later text
  coterie recipe > recipe-reference.md      # every key that a recipe of your own may hold""")


def taken_out(summary: Figures) -> str:
    """What the table says of the expert that was taken out; nothing where `--set` took the models for it away."""
    models = summary["evaluation"].get("losses", {})
    if not {"all-three", "without-chronicle", "base"} <= models.keys():
        return ""
    base, before, after = ({g: e["nll"] for g, e in models[m].items()} for m in ("base", "all-three", "without-chronicle"))
    rest = "; ".join(f"{g}: {before[g]:.3f} before, {after[g]:.3f} after" for g in before if g not in ("all", "chronicle"))
    return f"""
The chronicle's expert was taken out, and nothing was trained again for it. The loss on the chronicle goes from
{before["chronicle"]:.3f} back to {after["chronicle"]:.3f} (the base's is {base["chronicle"]:.3f}). The others stay: {rest}.
"""
