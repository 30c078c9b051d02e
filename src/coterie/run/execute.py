"""Do what a recipe asks for: look at the data, plan, train, mix, evaluate, publish."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from coterie import launch
from coterie.errors import RequestError
from coterie.evaluation.metrics import Losses
from coterie.evaluation.questions import read_questions
from coterie.progress import say
from coterie.recipe import read
from coterie.run import jobs as parallel
from coterie.run import publish as outcome
from coterie.run.conductor import Conductor, _data
from coterie.run.evaluate import Measured, summarise
from coterie.run.publish import Run
from coterie.store import DryStore, Store
from coterie.store.default_root import default_root

STAGES = ("experts", "mixtures", "evaluation", "report")
"""How far to go: `coterie train`, `mix` and `evaluate` stop after one of these; `run` does everything."""


def execute(
    recipe: str | Path | Mapping[str, Any],
    *,
    store: str | Path | None = None,
    out: str | Path | None = None,
    settings: Iterable[str] = (),
    dry_run: bool = False,
    until: str = "report",
    only: Iterable[str] = (),
    jobs: int | None = None,
    slurm: Mapping[str, Any] | None = None,
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
    stage = STAGES.index(until)
    asked = read(recipe, settings)
    root = Path(store) if store is not None else default_root()
    out = Path(out) if out is not None else Path("runs") / asked.name
    if out.exists() and not out.is_dir():
        raise RequestError("the results need a folder", where=str(out), found="a file", do="choose another --out")
    place = launch.place(jobs, slurm)
    c = Conductor(asked, DryStore(root) if dry_run else Store(root))
    only = _known(c, only)
    say(f"{asked.name}: recipe {asked.hash[:12]}, store {root}")
    c.store.keep(out)
    measured = Measured(c, out)
    places = outcome.Places(out, c)
    if place is not None and not dry_run:
        parallel.profile_recipe(c, place)
    if not only or place is not None:
        _look_first(c, measured)
    if place is not None and not dry_run:
        parallel.train(c, place, out, only or c.names)
    if only:
        return _train_only(c, places, only)
    _ = c.experts
    if not dry_run:
        say("  experts: {requested} requested, {distinct} distinct, {trained} trained, {reused} reused".format(**c.reuse()))
        places.experts(c.names)
    if stage >= 1:
        _ = c.mixtures
        if not dry_run:
            places.mixtures()
    if stage >= 2:
        _ = c.single
        if not dry_run:
            places.single()
        measured.all()
    if isinstance(c.store, DryStore):
        outcome.show_plan(asked, c.store.plan)
        return Run(asked, out, plan=c.store.plan)
    summary = summarise(c, measured, stage)
    places.write(summary, report_too=stage >= 3)
    c.store.keep(out, finished=True)
    outcome.show(summary, out)
    return Run(asked, out, summary, experts=places.opened("experts"), mixtures=places.opened("mixtures"))


def _known(c: Conductor, names: Iterable[str]) -> list[str]:
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in c.names:
            raise RequestError("no such expert", where="--expert", expected=", ".join(c.names), found=name)
    return names


def _train_only(c: Conductor, places: outcome.Places, names: list[str]) -> Run:
    """Some of the experts, linked into the results; the rest, and what is said of a whole run, is left as it was."""
    for name in names:
        _ = c.base if name == "base" else c.expert(name)
    if isinstance(c.store, DryStore):
        outcome.show_plan(c.recipe, c.store.plan)
        return Run(c.recipe, places.out, plan=c.store.plan)
    places.experts(names)
    c.store.keep(places.out)
    return Run(c.recipe, places.out, experts=places.opened("experts"))


def _look_first(c: Conductor, measured: Measured) -> None:
    """Read all data before anything is trained, so that what is wrong with the request is found at once."""
    for name in c.used_corpora:
        c.documents(name)
    for expert in c.recipe.experts:
        corpus, window, where = _data(expert)
        if not expert.finished:
            c.blocks(corpus, "train", window, where)
    for spec in c.recipe.evaluation:
        if isinstance(spec, Losses):
            measured.tested(spec)
        else:
            read_questions(spec)
