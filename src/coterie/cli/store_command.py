"""`coterie store ls | verify | prune`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli.options import StoreOption

if TYPE_CHECKING:
    from coterie.store import Store

app = typer.Typer(
    help="Look after the folder of finished work: list it, read it again byte for byte, delete what no run rests on.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("ls")
def ls(store: StoreOption = None) -> None:
    """List every artifact: kind, digest, size, what it was called, which runs rest on it."""
    from coterie.store import ls

    rows = ls(_open(store))
    for row in rows:
        runs = ", ".join(str(p) for p in row.kept_by) or "no run"
        typer.echo(f"{row.kind:<12} {row.digest[:12]}  {_size(row.size):>9}  {row.label}  ({runs})")
    typer.echo(f"{len(rows)} artifacts, {_size(sum(r.size for r in rows))}")


@app.command("verify")
def verify(store: StoreOption = None) -> None:
    """Hash every byte. Damaged artifacts are set aside, named, and made again when they are next asked for."""
    from coterie.errors import WorkError
    from coterie.store import verify

    opened = _open(store)
    report = verify(opened)
    for path, reason in report.damaged:
        typer.echo(f"damaged: {path}: {reason}")
    typer.echo(f"{report.objects} artifacts and {report.records} records are whole, {_size(report.bytes)} read")
    for path in report.lost:
        typer.echo(f"missing: {path}: written again from its artifact")
    if report.damaged or report.lost:
        raise WorkError(
            f"{len(report.damaged)} damaged artifacts and records were set aside, {len(report.lost)} records were missing",
            where=str(opened.root / "quarantine" if report.damaged else opened.root / "actions"),
            kept="the evidence, and everything else",
            do="run the recipe again: what is missing is made again",
        )


@app.command("prune")
def prune(
    store: StoreOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and delete nothing.")] = False,
    quarantine: Annotated[bool, typer.Option("--quarantine", help="Delete damaged artifacts that were set aside.")] = False,
) -> None:
    """Delete what no run rests on: a run is its output folder, so delete that first to free its space."""
    from coterie.store import prune

    report = prune(_open(store), dry_run=dry_run, quarantine=quarantine)
    for run in report.runs:
        typer.echo(f"the run {run} is gone")
    for path in [*report.objects, *report.work, *report.leftovers]:
        typer.echo(f"{'would delete' if dry_run else 'deleted'} {path}")
    verb = "would free" if dry_run else "freed"
    typer.echo(f"{verb} {_size(report.bytes)}; {len(report.objects)} artifacts go, {report.kept} stay")


def _open(root: Path | None) -> Store:
    from coterie.store import Store
    from coterie.store.store import default_root

    return Store(root or default_root())


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:,.0f} {unit}"
        size /= 1000
    return f"{size:,.1f} GB"
