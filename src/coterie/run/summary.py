"""``summary.json``: every figure of a run with its source."""

from __future__ import annotations

import json
from importlib.metadata import version

from coterie.experts.expert_settings import Expert
from coterie.report.measure import stated
from coterie.run.evaluate import Evaluations
from coterie.run.parts import Parts
from coterie.spec.json_types import Figures
from coterie.store import Artifact


def summarise(parts: Parts, evaluations: Evaluations, *, mixed: bool, evaluated: bool) -> Figures:
    """The figures of what was made.

    Args:
        mixed: mixtures were made too.
        evaluated: so were evaluations.
    """
    recipe, tables = parts.recipe, evaluations.tables
    experts: Figures = {}
    for name, artifact in parts.experts.items():
        if artifact.digest in experts:
            experts[artifact.digest].setdefault("also", []).append(name)
            continue
        expert = parts.by_name[name]
        entry = experts[artifact.digest] = expert_entry(name, expert, artifact, expert.corpus)
        if evaluated and (curve := evaluations.test_curve(name)):
            entry["test_curve"] = curve
    summary: Figures = {
        "schema": 1,
        "name": recipe.name,
        "seed": recipe.seed,
        "recipe_hash": recipe.hash,
        "slots": {
            m.name: [{"slot": i, "name": s, "expert": d} for i, (s, d) in enumerate(m.seats(parts))] for m in recipe.mixtures
        },
        "reuse": reuse(parts),
        "experts": experts,
        "evaluation": {name: t["evaluation"] for name, t in tables.items()},
        "differences": {name: t["differences"] for name, t in tables.items()},
        "sources": {name: t["sources"] for name, t in tables.items()},
        **({"measures": own} if (own := stated({e.name: e.measure for e in recipe.evaluation})) else {}),
        **({"foresight": ahead} if (ahead := evaluations.foresight()) else {}),
        "routing": evaluations.routing() if evaluated else {},
        **({"leaks": evaluations.leaks.facts} if evaluated and evaluations.leaks else {}),
        "corpora": {name: parts.documents(name).facts for name in parts.used_corpora},
        "notes": evaluations.notes,
        "versions": {name: version(name) for name in ("coterie", "torch", "transformers", "tokenizers")},
    }
    if recipe.base.pretrain:
        corpora = " + ".join(recipe.base.pretrain.corpora)
        summary["base"] = {"digest": parts.base.digest, **expert_entry("base", None, parts.base, corpora)}
    if evaluated and parts.single is not None:
        corpora = " + ".join(parts.trained_corpora)
        summary["single"] = {"digest": parts.single.digest, **expert_entry("single", None, parts.single, corpora)}
    if mixed:
        summary["mixtures"] = {m.name: parts.made(m).digest for m in recipe.mixtures}
    return summary


def reuse(parts: Parts) -> dict[str, int]:
    """Experts requested, distinct, trained and reused, and those that were made elsewhere."""
    distinct = parts.distinct.values()
    finished = sum(parts.by_name[name].finished for name in distinct)
    trained = sum(not parts.experts[name].reused and not parts.by_name[name].finished for name in distinct)
    requested = max(len(parts.recipe.experts), *(len(m.slots) for m in parts.recipe.mixtures), 0)
    counts = {"requested": requested, "distinct": len(distinct), "trained": trained}
    counts["reused"] = len(distinct) - trained - finished
    return counts | ({"finished": finished} if finished else {})


def expert_entry(name: str, expert: Expert | None, artifact: Artifact, corpus: str) -> Figures:
    """One line of `summary.json`'s experts. ``expert`` is None for base and single."""
    facts = artifact.facts
    curve, valid = [], []
    for row in logged_steps(artifact):
        if row.get("loss") is not None:
            curve.append([row["tokens"], row["loss"]])
        if row.get("eval_loss") is not None:
            valid.append([row["tokens"], row["eval_loss"]])
    return {
        "name": name,
        "trained": not artifact.reused and facts["tokens"] > 0,
        "tokens": facts["tokens"],
        "seconds": artifact.made.get("seconds"),
        "loss": facts["loss"],
        "kind": facts["kind"],
        "corpus": corpus,
        "parameters": facts["parameters"],
        "trained_parameters": facts["trained_parameters"],
        "seed": facts.get("seed"),
        **({"from": expert.from_} if expert else {}),
        **({"window": expert.window.model_dump(mode="json")} if expert and expert.window else {}),
        "curve": curve,
        **({"valid_curve": valid} if valid else {}),
    }


def logged_steps(artifact: Artifact) -> list[Figures]:
    """The logged steps of a training run."""
    path = artifact.file("metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
