"""Do what a recipe asks for: look at the data, plan, then walk the plan: train, mix, evaluate, publish."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from coterie.errors import RequestError
from coterie.launch import place
from coterie.progress import say
from coterie.recipe import read
from coterie.run.evaluate import Evaluations
from coterie.run.jobs import profile_selections, train_in_jobs
from coterie.run.parts import Parts
from coterie.run.plan import Plan
from coterie.run.publish import Results, Run, show
from coterie.run.summary import reuse, summarise
from coterie.store import DryStore, Store
from coterie.store.default_root import default_root

STAGES = ("experts", "mixtures", "evaluation", "report")
"""How far to go: `coterie train`, `mix` and `evaluate` stop after one of these; `run` does everything."""


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
    asked = read(recipe, settings)
    root = Path(store) if store is not None else default_root()
    out = Path(out) if out is not None else Path("runs") / asked.name
    if out.exists() and not out.is_dir():
        raise RequestError("the results need a folder", where=str(out), found="a file", do="choose another --out")
    where, stage = place(jobs, slurm), STAGES.index(until)
    parts = Parts(asked, DryStore(root) if dry_run else Store(root))
    chosen = _known(parts, only)
    say(f"{asked.name}: recipe {asked.hash[:12]}, store {root}")
    parts.store.keep(out)
    if where is not None and not dry_run:
        profile_selections(parts, where)
    if not chosen or where is not None:
        look(parts, out)
    plan = plan_of(parts, stage, chosen)
    if dry_run:
        print(plan.text(asked))
        return Run(asked, out, plan)
    if where is not None:
        train_in_jobs(parts, where, out, chosen or parts.names)
    for name in chosen or parts.names:  # the way to the Trainer begins here, and is kept short
        made = parts.base if name == "base" else parts.expert(name)
        assert not made.planned
    return _train_only(parts, plan, out, chosen) if chosen else _everything(parts, plan, out, stage)


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
    wanted = [dry.base if name == "base" else dry.expert(name) for name in only]
    if not only:
        wanted += dry.experts.values()
        if stage >= STAGES.index("mixtures"):
            wanted += dry.mixtures.values()
        if stage >= STAGES.index("evaluation"):
            wanted += [dry.single] if dry.single is not None else []
            Evaluations(dry, Path()).all()
    return Plan(twin.steps)


def _everything(parts: Parts, plan: Plan, out: Path, stage: int) -> Run:
    evaluations, results = Evaluations(parts, out), Results(out, parts)
    say("  experts: {requested} requested, {distinct} distinct, {trained} trained, {reused} reused".format(**reuse(parts)))
    results.experts(parts.names)
    mixed, evaluated = stage >= STAGES.index("mixtures"), stage >= STAGES.index("evaluation")
    if mixed:
        results.mixtures()
    if evaluated:
        results.single()
        evaluations.all()
    summary = summarise(parts, evaluations, mixed=mixed, evaluated=evaluated)
    results.write(summary, plan, report=stage >= STAGES.index("report"))
    parts.store.keep(out, finished=True)
    show(summary, out)
    return Run(parts.recipe, out, plan, summary, results.opened("experts"), results.opened("mixtures"))


def _train_only(parts: Parts, plan: Plan, out: Path, names: Sequence[str]) -> Run:
    """Some of the experts, linked into the results; the rest, and the figures of a whole run, are left as they were."""
    results = Results(out, parts)
    results.experts(names)
    parts.store.keep(out)
    return Run(parts.recipe, out, plan, experts=results.opened("experts"))


def _known(parts: Parts, names: Iterable[str]) -> list[str]:
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in parts.names:
            raise RequestError("no such expert", where="--expert", expected=", ".join(parts.names), found=name)
    return chosen
