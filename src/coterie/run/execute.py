"""Do what a recipe asks for: look at the data, plan, then walk the plan: train, mix, evaluate, publish."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from coterie.errors import RequestError
from coterie.launch import place
from coterie.progress import say
from coterie.recipe import read
from coterie.run.evaluate import Evaluations
from coterie.run.jobs import profile_selections, train_in_jobs
from coterie.run.parts import Parts
from coterie.run.plan import Goal, Plan
from coterie.run.publish import Results, Run, show
from coterie.run.summary import summarise
from coterie.store import DryStore, Store
from coterie.store.durable import explained
from coterie.store.store import default_root
from coterie.store.whole import write_seal

STAGES = ("experts", "mixtures", "evaluation", "report")
"""How far to go: `coterie train`, `mix` and `evaluate` stop after one of these; `run` does everything."""
MIXTURES, EVALUATION = STAGES.index("mixtures"), STAGES.index("evaluation")


def execute(
    recipe: str | Path | Mapping[str, object],
    store: str | Path | None,
    out: str | Path | None,
    settings: Iterable[str],
    dry_run: bool,
    until: str,
    only: Iterable[str],
    jobs: int | None,
    slurm: Mapping[str, object] | None,
) -> Run:
    """See `coterie.run`."""
    parsed = read(recipe, settings)
    root = Path(store) if store is not None else default_root()
    out = Path(out) if out is not None else Path("runs") / parsed.name
    if out.exists() and not out.is_dir():
        raise RequestError("the results need a folder", where=str(out), found="a file", do="choose another --out")
    where, stage = place(jobs, slurm), STAGES.index(until)
    parts = Parts(parsed, DryStore(root) if dry_run else Store(root))
    with explained(root, parsed.name, "used"):  # a store may be moved, a disk be full, at any moment
        chosen = _known(parts, only)
        say(f"{parsed.name}: recipe {parsed.hash[:12]}, store {root}")
        parts.store.keep(out)
        if where is not None and not dry_run:
            profile_selections(parts, where)
        if not chosen or where is not None:
            look(parts, out)
        plan = plan_of(parts, stage, chosen)
        if dry_run:
            print(plan.text(parsed))
            return Run(parsed, out, plan)
        if where is not None:
            train_in_jobs(parts, where, out, chosen or parts.names)
        parts.store.announce = plan.announce
        evaluations, results = Evaluations(parts, out), Results(out, parts)
        for goal in plan.goals:  # the way to the Trainer begins here, and is kept short
            made = evaluations.goals[goal.kind](goal.name)
            assert made is not None, goal
            results.put(goal, made)
        if chosen:  # the figures of a whole run are left as they were
            write_seal(out)
            parts.store.keep(out)
            return Run(parsed, out, plan, experts=results.opened("experts"))
        summary = summarise(parts, evaluations, mixed=stage >= MIXTURES, evaluated=stage >= EVALUATION)
        results.write(summary, plan.done(plan_of(parts, stage)), report=stage > EVALUATION)
        parts.store.keep(out, finished=True)
        show(summary, out)
        return Run(parsed, out, plan, summary, results.opened("experts"), results.opened("mixtures"))


def look(parts: Parts, out: Path) -> None:
    """Read all data before anything is trained, so that what is wrong with the request is found at once."""
    for name in parts.used_corpora:
        parts.documents(name)
    for expert in parts.recipe.experts:
        if not expert.finished:
            parts.data(expert.name, "train")
    Evaluations(parts, out).look()


def plan_of(parts: Parts, stage: int, only: Sequence[str] = ()) -> Plan:
    """What the store holds and lacks of what is asked for; nothing is made.

    Args:
        stage: how far to go, as an index into `STAGES`.
        only: experts that alone are asked for (``base``: the base).
    """
    twin = parts.store if isinstance(parts.store, DryStore) else parts.store.dry_twin()
    dry = Parts(parts.recipe, twin)
    evaluations, goals = Evaluations(dry, Path()), tuple(_goals(parts, stage, only))
    for goal in goals:
        evaluations.goals[goal.kind](goal.name)
    return Plan(twin.steps, goals)


def _goals(parts: Parts, stage: int, only: Sequence[str]) -> Iterator[Goal]:
    for name in only or parts.names:
        yield Goal("base" if name == "base" else "expert", name)
    if stage >= MIXTURES and not only:
        for mixture in parts.recipe.mixtures:
            yield Goal("mixture", mixture.name)
    if stage >= EVALUATION and not only:
        if parts.recipe.single is not None:
            yield Goal("single", "single")
        for metric in parts.recipe.evaluation:
            yield Goal("evaluation", metric.name)


def _known(parts: Parts, names: Iterable[str]) -> list[str]:
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in parts.names:
            raise RequestError("no such expert", where="--expert", expected=", ".join(parts.names), found=name)
    return chosen
