"""From figures to the tables of `summary.json`: names are put in when an evaluation is read, never stored in it, so that
what was renamed is evaluated already."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

from coterie.evaluation.compare import Comparison, Figure
from coterie.store import Artifact

Entry = dict[str, object]
"""A figure in the words of one kind of evaluation, such as ``nll``, ``ci95``, ``tokens``; of a reference, its ``expert``."""


class Tables(TypedDict):
    """The parts of `summary.json` that one evaluation fills."""

    evaluation: dict[str, dict[str, Entry]]
    """``{MODEL: {GROUP: entry}}``, the references `best_expert` and `oracle` among the models."""
    differences: dict[str, dict[str, dict[str, Entry]]]
    """``{MODEL: {REFERENCE: {GROUP: entry}}}``, model minus reference: the figure, ci95 and documents."""
    sources: Entry
    """Where the figures come from: ``artifact`` (the evaluation's digest), ``models`` (digest of each), ``data`` (digest by
    corpus, or of the file), seed, resamples, token and document counts, and what was removed as trained on."""


def write(folder: Path, about: Mapping[str, object], comparison: Comparison, entry: Callable[[Figure], Entry]) -> None:
    """Write ``evaluation.json``: what was evaluated, and its figures by position of model and group.

    Args:
        about: kind, seed, digests of models and data, counts.
        entry: a figure in the words of this kind of evaluation.
    """
    c = comparison
    figures: dict[str, object] = {
        "models": [[entry(f) for f in row] for row in c.models],
        "differences": [
            {"model": m, "to": o, "figures": [{**entry(f), "documents": f.documents} for f in row]}
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


def tables(evaluation: Artifact, models: Sequence[str], corpora: Sequence[str] = (), *, key: str = "nll") -> Tables:
    """The figures of an evaluation, with names.

    Args:
        evaluation: from `evaluate_losses` or `evaluate_choices`.
        models, corpora: names, in the order in which they were given there.
        key: of the figure that differences are of.
    """
    about = json.loads(evaluation.file("evaluation.json").read_text())
    figures, data, sources = (about.pop(key) for key in ("figures", "data", "sources"))
    groups = [*(about.pop("groups") or corpora), "all"]

    def named(row: Sequence[dict]) -> dict[str, Entry]:
        return {g: f | ({"expert": models[f["expert"]]} if "expert" in f else {}) for g, f in zip(groups, row, strict=True)}

    evaluated = {name: named(row) for name, row in zip(models, figures["models"], strict=True)}
    for reference in ("best_expert", "oracle"):
        if reference in figures:
            evaluated[reference] = named(figures[reference])
    differences: dict[str, dict[str, dict[str, Entry]]] = {}
    for d in figures["differences"]:
        reference = "best_expert" if d["to"] == figures.get("best") else models[d["to"]]
        kept = [{k: v for k, v in f.items() if k in (key, "ci95", "documents")} for f in d["figures"]]
        differences.setdefault(models[d["model"]], {})[reference] = named(kept)
    about |= {
        "artifact": evaluation.digest,
        "data": dict(zip(corpora, data, strict=True)) if corpora else {"file": data[0]},
        "models": dict(zip(models, sources, strict=True)),
    }
    return {"evaluation": evaluated, "differences": differences, "sources": about}
