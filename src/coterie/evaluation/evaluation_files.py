"""From figures to the tables of `summary.json`: names are put in when an evaluation is read, never stored in it, so that
what was renamed is evaluated already."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from coterie.evaluation.compare import Comparison, Figure
from coterie.spec.json_types import Figures
from coterie.store import Artifact

Entry = Callable[[Figure], Figures]


def write(folder: Path, about: Figures, comparison: Comparison, entry: Entry) -> None:
    """Write ``evaluation.json``: what was evaluated, and its figures by position of model and group.

    Args:
        about: kind, seed, digests of models and data, counts.
        entry: a figure in the words of this kind of evaluation.
    """
    c = comparison
    figures: Figures = {
        "models": [[entry(f) for f in row] for row in c.models],
        "differences": [
            {"model": m, "to": o, "figures": [{**entry(f), "documents": f["documents"]} for f in row]}
            for m, o, row in c.differences
        ],
    }
    if c.best is not None:
        figures["best"] = c.best
        figures["best_expert"] = [{**entry(f), "expert": c.best} for f in c.best_expert]
        figures["oracle"] = [
            entry(f) if expert is None else {**entry(f), "expert": expert}
            for f, expert in zip(c.oracle_expert, [*c.oracle, None], strict=True)
        ]
    text = json.dumps({**about, "figures": figures}, indent=1, sort_keys=True, allow_nan=False)
    (folder / "evaluation.json").write_text(text + "\n")


def tables(evaluation: Artifact, models: Sequence[str], corpora: Sequence[str] = ()) -> Figures:
    """The parts of `summary.json` that one evaluation fills.

    Args:
        evaluation: from `evaluate_losses` or `evaluate_choices`.
        models, corpora: names, in the order in which they were given there.

    Returns:
        ``evaluation``: ``{MODEL: {GROUP: figures}}``, the references among the models; ``differences``:
        ``{MODEL: {REFERENCE: {GROUP: {nll or accuracy, ci95, documents}}}}`` (model minus reference); ``sources``: where the
        figures come from: the evaluation's digest, ``models`` (digest of each), ``data`` (digest by corpus, or of the file),
        seed, resamples, token and document counts, and what was removed as trained on.
    """
    about = json.loads(evaluation.file("evaluation.json").read_text())
    figures = about.pop("figures")
    groups = [*(about.pop("groups") or corpora), "all"]

    def named(row: Sequence[Figures]) -> Figures:
        return {
            g: {**f, "expert": models[f["expert"]]} if "expert" in f else dict(f) for g, f in zip(groups, row, strict=True)
        }

    evaluated = {name: named(row) for name, row in zip(models, figures["models"], strict=True)}
    for reference in ("best_expert", "oracle"):
        if reference in figures:
            evaluated[reference] = named(figures[reference])
    differences: dict[str, Figures] = {}
    for d in figures["differences"]:
        reference = "best_expert" if d["to"] == figures.get("best") else models[d["to"]]
        kept = [{k: v for k, v in f.items() if k in ("nll", "accuracy", "ci95", "documents")} for f in d["figures"]]
        differences.setdefault(models[d["model"]], {})[reference] = named(kept)
    data = about.pop("data")
    sources = {
        **about,
        "artifact": evaluation.digest,
        "data": dict(zip(corpora, data, strict=True)) if corpora else {"file": data[0]},
        "models": dict(zip(models, about.pop("sources"), strict=True)),
    }
    sources.pop("sources")
    return {"evaluation": evaluated, "differences": differences, "sources": sources}
