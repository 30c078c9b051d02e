"""Models side by side: a ratio for each model and group, references among the experts, differences, intervals.

Every model, reference and difference is one row of numerators and one of denominators over the documents; a figure is a
ratio of their sums. A difference is the row of differences over the documents that both models answer, so its interval is
paired.

The references are picked on the very documents they are scored on. That flatters them a little, so a mixture that beats
`best_expert` here beats it honestly, and `oracle` is a bound, not a model.

How sure a figure is, says the Poisson bootstrap of a ratio of sums over documents.

Each resample draws every document Poisson(1) times, independently. It differs from drawing D documents with replacement only
in that the number drawn is not fixed, which a ratio does not feel, and one matrix product then serves every model, so that
differences between models are paired without further work. Its price: with fewer than about ten documents intervals are
rough, as any bootstrap's are.

Over all groups each keeps its share (a stratified bootstrap): which documents were drawn is chance, how many tokens of each
corpus a recipe evaluates is not. Else one long document more or less would move the mix of corpora, and with it every loss.

Source: Chamandy, Muralidharan, Najmi, Naidu (2012), Estimating uncertainty for massive data streams.

Letters: M models, X rows (models, references, differences), D documents, G groups, R resamples.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Float, Int

from coterie.store import Artifact

_CHUNK = 2_000_000
"""Draws held at once."""


def intervals(
    above_XD: Float[np.ndarray, "X D"],
    below_XD: Float[np.ndarray, "X D"],
    group_D: Int[np.ndarray, " D"],
    groups: int,
    *,
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> Float[np.ndarray, "X G+1 2"]:
    """Ends of the interval of ``above / below`` in each group and, last, over all of them. NaN where there is nothing.

    Args:
        above_XD, below_XD: numerator and denominator of each document, such as nats and tokens; both 0 where a model
            has no answer.
        group_D: the group of each document, from 0 to ``groups - 1``.
    """
    rng = np.random.default_rng(seed)
    tails = [(1 - level) / 2, (1 + level) / 2]
    ends_XG2 = np.full((len(above_XD), groups + 1, 2), np.nan)
    if not resamples:
        return ends_XG2
    total_RX = np.zeros((resamples, len(above_XD)))
    weight_X = below_XD.sum(1)
    for g in range(groups):
        members = np.flatnonzero(group_D == g)
        some = below_XD[:, members].sum(1) > 0
        if some.any():
            ratio_RX = _resampled(above_XD[some][:, members], below_XD[some][:, members], resamples, rng)
            ends_XG2[some, g] = np.quantile(ratio_RX, tails, axis=0).T
            total_RX[:, some] += ratio_RX * (below_XD[some][:, members].sum(1) / weight_X[some])
    ends_XG2[weight_X > 0, -1] = np.quantile(total_RX[:, weight_X > 0], tails, axis=0).T
    return ends_XG2


def _resampled(
    above_XD: Float[np.ndarray, "X D"], below_XD: Float[np.ndarray, "X D"], resamples: int, rng: np.random.Generator
) -> Float[np.ndarray, "R X"]:
    """The ratio in each resample; a row whose documents it misses altogether has its own ratio there."""
    documents = above_XD.shape[1]
    ratio_RX = np.empty((resamples, len(above_XD)))
    step = max(1, _CHUNK // documents)
    for start in range(0, resamples, step):
        counts_RD = rng.poisson(1.0, (min(step, resamples - start), documents)).astype(np.float64)
        below_RX = counts_RD @ below_XD.T
        missed_RX = below_RX == 0
        ratio_RX[start : start + step] = counts_RD @ above_XD.T / np.where(missed_RX, 1, below_RX)
        ratio_RX[start : start + step] += missed_RX * (above_XD.sum(1) / below_XD.sum(1))
    return ratio_RX


@dataclass(frozen=True)
class Figure:
    """One ratio over some documents."""

    value: float | None
    """None without a document."""
    ci95: list[float] | None
    """None with fewer than two documents."""
    weight: int
    documents: int
    skipped: int
    """Documents that the model cannot answer."""
    also: Mapping[str, float | None]
    """Further values over the same weights, without interval."""


@dataclass(frozen=True)
class Comparison:
    """Figures by row; each list holds one figure for each group and, last, one over all of them."""

    models: list[list[Figure]]
    best: int | None
    """The expert that is best over all groups."""
    best_expert: list[Figure]
    oracle: list[int]
    """For each group, the expert that is best there."""
    oracle_expert: list[Figure]
    differences: list[tuple[int, int, list[Figure]]]
    """(model, other, model minus other)."""


def compare(
    value_MD: Float[np.ndarray, "M D"],
    weight_D: Int[np.ndarray, " D"],
    answered_MD: Bool[np.ndarray, "M D"],
    group_D: Int[np.ndarray, " D"],
    groups: int,
    *,
    experts: Sequence[int],
    against: Sequence[int] = (),
    also: Mapping[str, Float[np.ndarray, "M D"]] | None = None,
    lowest: bool,
    resamples: int,
    seed: int,
) -> Comparison:
    """Compare models over the same documents.

    Args:
        value_MD: what is summed up, such as nats; ignored where a model has no answer.
        weight_D: what it is divided by, such as tokens; documents of weight 0 count nowhere.
        experts: models the references are chosen among: those of them that answer every document.
        against: models that all others are compared with; the best expert always is.
        also: further values over the same weights, which decide nothing.
        lowest: whether small is good.
    """
    answered_MD = answered_MD & (weight_D > 0)
    models = len(answered_MD)
    whole = [e for e in experts if answered_MD[e].sum() == (weight_D > 0).sum()]
    best, oracle, chosen_D = None, [], np.zeros(len(weight_D), int)
    if whole:
        cost_EG = np.stack([np.bincount(group_D, np.where(answered_MD[e], value_MD[e], 0), groups) for e in whole])
        cost_EG *= 1 if lowest else -1
        best = whole[int(cost_EG.sum(1).argmin())]
        oracle = [whole[int(i)] for i in cost_EG.argmin(0)]
        chosen_D = np.array(oracle)[group_D]
    others = dict.fromkeys([*([] if best is None else [best]), *against])
    pairs = [(m, o) for m in range(models) for o in others if m != o]

    def rows(of_MD: np.ndarray) -> np.ndarray:
        references = [] if best is None else [of_MD[best], of_MD[chosen_D, np.arange(len(chosen_D))]]
        return np.stack([*of_MD, *references, *(of_MD[m] - of_MD[o] for m, o in pairs)])

    references = [] if best is None else [answered_MD[best]] * 2
    answered_XD = np.stack([*answered_MD, *references, *(answered_MD[m] & answered_MD[o] for m, o in pairs)])
    values = {name: np.where(answered_XD, rows(of_MD), 0.0) for name, of_MD in {"": value_MD, **(also or {})}.items()}
    figures = _figures(values, answered_XD, weight_D, group_D, groups, resamples=resamples, seed=seed)
    return Comparison(
        models=figures[:models],
        best=best,
        best_expert=figures[models] if whole else [],
        oracle=oracle,
        oracle_expert=figures[models + 1] if whole else [],
        differences=[(m, o, f) for (m, o), f in zip(pairs, figures[len(figures) - len(pairs) :], strict=True)],
    )


def _figures(
    values: Mapping[str, Float[np.ndarray, "X D"]],
    answered_XD: Bool[np.ndarray, "X D"],
    weight_D: np.ndarray,
    group_D: np.ndarray,
    groups: int,
    *,
    resamples: int,
    seed: int,
) -> list[list[Figure]]:
    below_XD = answered_XD * weight_D.astype(np.float64)
    ends_XG2 = intervals(values[""], below_XD, group_D, groups, resamples=resamples, seed=seed).round(6)

    def by_group(row_D: np.ndarray) -> np.ndarray:
        sums_G = np.bincount(group_D, row_D, groups)
        return np.append(sums_G, sums_G.sum())

    present = by_group(weight_D > 0).astype(int)
    out = []
    for x in range(len(answered_XD)):
        below, answered = by_group(below_XD[x]), by_group(answered_XD[x]).astype(int)
        above = {name: by_group(value_XD[x]) for name, value_XD in values.items()}
        out.append(
            [
                Figure(
                    value=float(above[""][g] / below[g]) if below[g] else None,
                    ci95=ends_XG2[x, g].tolist() if answered[g] > 1 and resamples else None,
                    weight=int(below[g]),
                    documents=int(answered[g]),
                    skipped=int(present[g] - answered[g]),
                    also={name: float(v[g] / below[g]) if below[g] else None for name, v in above.items() if name},
                )
                for g in range(groups + 1)
            ]
        )
    return out


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
    """Write ``evaluation.json``: what was evaluated (kind, seed, digests, counts), and its figures by position of model and
    group, each as ``entry`` puts it in the words of this kind of evaluation."""
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
