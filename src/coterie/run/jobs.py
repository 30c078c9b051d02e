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
from pathlib import Path

from coterie.errors import WorkError
from coterie.launch import Job, Place, run_jobs
from coterie.progress import say
from coterie.recipe import Recipe
from coterie.run.parts import Parts
from coterie.run.plan import Plan
from coterie.select.profile_shards import profile_parts, shards
from coterie.select.select_settings import Corpus
from coterie.store import Store


def train_in_jobs(parts: Parts, place: Place, out: Path, names: Sequence[str]) -> None:
    """Train the experts of these names, and what they branch from, as jobs; `base` names the base.

    Raises:
        WorkError: a job failed, or what the jobs made is of no use here.
    """
    missing = missing_trainings(parts, names)
    if not missing:
        return
    start = parts.start  # all of them read it: made once, before they wait for each other
    assert not start.planned
    with parts.store.workplace() as folder:
        recipe = _written(parts.recipe, folder)
        rest = ("--store", str(parts.store.root), "--out", str(out.absolute()))
        jobs = [Job(name, ("train", recipe, "--expert", name, *rest), before) for name, before in missing.items()]
        _run(jobs, place, folder, "trainings", changed=lambda: missing_trainings(parts, names))
    until = time.monotonic() + place.arrives
    while (left := missing_trainings(parts, names)) and time.monotonic() < until:
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
        parts.store.count_as_made(parts.base if name == "base" else parts.expert(name))


def missing_trainings(parts: Parts, names: Sequence[str]) -> dict[str, frozenset[str]]:
    """Trainings that the store lacks, each under the first name it goes by -> those that must come before it."""
    twin = parts.store.dry_twin()
    dry = Parts(parts.recipe, twin)
    made = {name: dry.base if name == "base" else dry.expert(name) for name in [*parts.names, *names]}
    parts.store.expect(twin)
    plan = Plan(twin.steps)
    name_of: dict[str, str] = {}
    for name, artifact in made.items():
        finished = name in parts.by_name and parts.by_name[name].finished
        if artifact.planned and not finished:
            name_of.setdefault(artifact.digest, name)  # of what is missing, the digest is its step's key
    before = {key: plan.before(key, name_of) for key in name_of}
    left = [made[name].digest for name in names]
    wanted: set[str] = set()
    while left:
        key = left.pop()
        if key in plan.steps and key not in wanted:
            wanted.add(key)
            left += before[key] if key in before else plan.before(key, name_of)
    return {name: frozenset(map(name_of.__getitem__, before[key])) for key, name in name_of.items() if key in wanted}


def profile_selections(parts: Parts, place: Place) -> None:
    """Profile what the recipe's selections choose from, in shares of the files."""
    chosen = {name: parts.corpus(name) for name in parts.used_corpora if parts.corpus(name).select is not None}
    if chosen:
        with parts.store.workplace() as folder:
            whole = {**parts.recipe.corpora, **chosen}  # with the columns that the recipe's other parts ask for
            recipe = _written(parts.recipe.model_copy(update={"corpora": whole}), folder)
            for name, corpus in chosen.items():
                _profile(parts.store, corpus, place, folder, name, (recipe, "--corpus", name))


def profile(store: Store, corpus: Corpus, place: Place, label: str, words: Sequence[str]) -> None:
    """Profile a corpus in shares of its files; ``words`` of the command line name it. Whoever reads it next only merges."""
    with store.workplace() as folder:
        _profile(store, corpus, place, folder, label, words)


def _profile(store: Store, corpus: Corpus, place: Place, folder: Path, label: str, words: Sequence[str]) -> None:
    parts = len(shards(corpus, label, download=True))
    n = min(place.at_once or parts, parts)
    jobs = []
    for i in range(n):
        made = profile_parts(store.dry_twin(), corpus, label=label, only=(i, n))
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
