"""A command's work as jobs: which trainings and which shares of files the store lacks, and what has to come before what.

Jobs are commands of their own (`coterie train --expert`, `coterie select profile --part`) that put what they make into the
store; the command that asked for them then does all its work as it would alone, and finds it made. What is short is made by
that command first (documents, tokenizer, blocks, fresh weights): all jobs would otherwise begin by waiting for one of
them. The base's pre-training is a job that the others come after, for the same reason: on the store's lease they would wait
as well, but each with its share of the machine, or with GPUs of a cluster, in hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.errors import WorkError
from coterie.launch import Job, Place, run_jobs
from coterie.progress import say
from coterie.recipe import Recipe
from coterie.select.corpus import Corpus
from coterie.select.profile_shards import profiled, shards
from coterie.store import Store

if TYPE_CHECKING:
    from coterie.run.conductor import Conductor


def train(c: Conductor, place: Place, out: Path, names: Sequence[str]) -> None:
    """Train the experts of these names, and what they branch from, as jobs; `base` names the base.

    Raises:
        WorkError: a job failed, or what the jobs made is of no use here.
    """
    missing = missing_trainings(c, names)
    if not missing:
        return
    _ = c.start
    with c.store.workplace() as folder:
        recipe = _written(c.recipe, folder)
        rest = ("--store", str(c.store.root), "--out", str(out.absolute()))
        jobs = [Job(name, ("train", recipe, "--expert", name, *rest), frozenset(before)) for name, before in missing.items()]
        _run(jobs, place, folder, "trainings", changed=lambda: missing_trainings(c, names))
    until = time.monotonic() + place.arrives
    while (left := missing_trainings(c, names)) and time.monotonic() < until:
        time.sleep(2)
    if left:
        raise WorkError(
            "this command has no use for what its jobs made",
            expected=f"{', '.join(left)} in the store",
            found="they were made on another kind of device, or with other libraries",
            kept="what the jobs made",
            do="call it on a machine like those of the jobs: what is computed on a GPU is not taken for what a CPU computes",
        )
    for name in missing:
        c.store.count_as_made(c.base if name == "base" else c.expert(name))


def missing_trainings(c: Conductor, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Trainings that the store lacks, each under the first name it goes by -> those that must come before it."""
    twin = c.store.dry_twin()
    dry = type(c)(c.recipe, twin)
    first: dict[str, str] = {}
    found: dict[str, tuple[str, ...]] = {}

    @cache
    def before(name: str) -> tuple[str, ...]:
        """What must be done before something can branch from ``name``."""
        if name == "base":
            if c.recipe.base.pretrain is None or not dry.base.planned:
                return ()
            found["base"] = ()
            return ("base",)
        if name not in c.by_name:  # fresh weights
            return ()
        expert, artifact = c.by_name[name], dry.expert(name)
        earlier = before(expert.from_)
        if expert.finished or not artifact.planned:
            return earlier
        name = first.setdefault(artifact.digest, name)
        found.setdefault(name, earlier)
        return (name,)

    for name in names:
        before(name)
    c.store.expect(twin)
    return found


def profile_recipe(c: Conductor, place: Place) -> None:
    """Profile what the recipe's selections choose from, in shares of the files."""
    chosen = {name: c.corpus(name) for name in c.used_corpora if c.corpus(name).select is not None}
    if chosen:
        with c.store.workplace() as folder:
            whole = {**c.recipe.corpora, **chosen}  # with the columns that the recipe's other parts ask for
            recipe = _written(c.recipe.model_copy(update={"corpora": whole}), folder)
            for name, corpus in chosen.items():
                _profile(c.store, corpus, place, folder, name, (recipe, "--corpus", name))


def profile(store: Store, corpus: Corpus, place: Place, label: str, words: Sequence[str]) -> None:
    """Profile a corpus in shares of its files; ``words`` of the command line name it. Whoever reads it next only merges."""
    with store.workplace() as folder:
        _profile(store, corpus, place, folder, label, words)


def _profile(store: Store, corpus: Corpus, place: Place, folder: Path, label: str, words: Sequence[str]) -> None:
    parts = len(shards(corpus, label, download=True))
    n = min(place.at_once or parts, parts)
    jobs = []
    for i in range(n):
        made = profiled(store.dry_twin(), corpus, label=label, only=(i, n))
        if any(artifact.planned for pair in made for artifact in pair):
            arguments = ("select", "profile", *words, "--store", str(store.root), "--part", f"{i + 1}/{n}")
            jobs.append(Job(f"{label}.{i + 1}", arguments))
    _run(jobs, place, folder, f"shares of {label}")


def _written(recipe: Recipe, folder: Path) -> str:
    """The recipe as resolved, for jobs: whoever edits the file meanwhile changes nothing for them."""
    path = folder / "recipe.json"
    path.write_text(recipe.model_dump_json(by_alias=True))
    return str(path)


def _run(jobs: Sequence[Job], place: Place, folder: Path, what: str, changed: Callable[[], object] = lambda: None) -> None:
    if jobs:
        at_once = min(place.at_once or len(jobs), len(jobs))
        say(f"  {what} in jobs: {len(jobs)}, {at_once} at once; their logs: {folder}")
        run_jobs(jobs, place, folder, changed)
