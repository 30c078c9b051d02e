"""What a recipe asks for, planned and done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coterie.run.publish import Run


def run(
    recipe: str | Path | Mapping[str, object],
    *,
    store: str | Path | None = None,
    out: str | Path | None = None,
    settings: Iterable[str] = (),
    dry_run: bool = False,
    until: str = "report",
    only: Iterable[str] = (),
    jobs: int | None = None,
    slurm: Mapping[str, object] | None = None,
) -> Run:
    """Everything a recipe asks for.

    Args:
        recipe: a YAML or JSON file, or the same as a mapping.
        store: folder of finished work; default `$COTERIE_STORE`, else the user's cache folder.
        out: folder for the results; default ``runs/NAME``.
        settings: overrides such as ``"seed=1"``.
        dry_run: only find out what is cached and what would be made.
        until: stop after ``experts``, ``mixtures`` or ``evaluation``; ``report`` does everything.
        only: train these experts (``base``: the base) and what they branch from, and stop.
        jobs: train so many experts at once, each a process of its own; profile files for selections so too.
        slurm: do that as SLURM jobs with these parameters, such as ``{"partition": "gpu", "time": "4:00:00"}``;
            ``jobs`` then says how many at once, by default all.

    Returns:
        the run: `.summary`, `.experts`, `.mixtures`, `.out`; of a dry run `.plan`.

    Raises:
        RequestError: the request is wrong; the message says what, where, expected, found, and the remedy.
        WorkError: it failed while working; what was finished is kept, and the same call continues.
    """
    from coterie.run.execute import execute

    return execute(recipe, store, out, settings, dry_run, until, only, jobs, slurm)
