"""The report of a selection: eleven groups of figures, each with its source, as one JSON object.

1 funnel, 2 axes, 3 table and certificate, 4 comparison with other strategies and with chance, 5 cells, 6 duplicates,
7 clusters, 8 tokens, 9 batches, 10 provenance, 11 training (blank unless a paired run is attached).
"""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import polars as pl

from coterie.errors import RequestError
from coterie.select import selection_figures as figures
from coterie.select.choose import Chosen, choose, side_by_side
from coterie.select.plan_settings import CLUSTER
from coterie.select.profiled_corpus import Profiled
from coterie.select.select_settings import NearDup
from coterie.select.selection import plan_json
from coterie.select.sketch import chance
from coterie.select.strategies import RANDOM
from coterie.spec.digest import digest
from coterie.spec.json_types import Figures

DRAWS = 20
"""Random selections that chance is judged by."""
BATCH_TOKENS = 65_536
_LIBRARIES = ("coterie", "numpy", "polars", "pyarrow", "scipy", "scikit-learn")
_BINS = 40


def report(data: Profiled, chosen: Chosen, *, paired: Path | None = None) -> Figures:
    """All figures.

    Args:
        paired: JSON of a training experiment on equal tokens (``benchmarks/selection_helps.py``), for group 11.

    Raises:
        RequestError: the attached file is no JSON object.
    """
    label_names = list(chosen.pool.labels)
    return {
        "schema": 1,
        "corpus": data.label,
        "funnel": _funnel(data, chosen),
        "axes": figures.axis_figures(chosen),
        "table": plan_json(chosen),
        "comparison": _comparison(data, chosen),
        "unused_labels": [n for n in label_names if n not in data.select.axes],
        "cells": figures.cell_figures(chosen),
        "distributions": _distributions(chosen),
        "duplicates": _duplicates(data),
        "clusters": _clusters(data, chosen),
        "tokens": _tokens(data, chosen),
        "batches": {axis: dict(figures.batch_mix(chosen, axis, BATCH_TOKENS)) for axis in data.select.axes},
        "provenance": _provenance(data),
        "training": _paired(paired),
    }


def _funnel(data: Profiled, chosen: Chosen) -> Figures:
    funnel = dict(data.artifact.facts["funnel"])
    funnel["selected"] = {"documents": len(chosen.at), "tokens": chosen.tokens}
    funnel["not_selected"] = {key: funnel["kept"][key] - funnel["selected"][key] for key in ("documents", "tokens")}
    dropped = sum(entry["documents"] for entry in funnel["dropped"].values())
    whole = funnel["filtered"] + funnel["quarantined"] + dropped + funnel["not_selected"]["documents"] + len(chosen.at)
    assert funnel["read"] == whole, "a row is not accounted for"
    return funnel


def _comparison(data: Profiled, chosen: Chosen) -> Figures:
    """Every strategy with the same budget, and the band of random draws."""
    by_lot = data.select.model_copy(update={"strategy": RANDOM.tag})
    table = {"this selection": figures.of_selection(chosen)}
    others = side_by_side(data.candidates, data.select, seed=data.seed, label=data.label)
    table |= {name: figures.of_selection(other) for name, other in others.items()}
    mine = chosen.chosen_N
    for name, other in others.items():
        both = int((mine & other.chosen_N).sum())
        table[name]["shared_with_this"] = both / max(len(chosen.at), 1)
    band = figures.band(lambda seed: choose(data.candidates, by_lot, seed=seed + 1000, label=data.label), DRAWS)
    pool = {
        name: figures.label_figures(labels, np.arange(len(chosen.pool)), chosen.pool.tokens_N)
        for name, labels in chosen.pool.labels.items()
    }
    return {"strategies": table, "random": band, "pool": pool}


def _distributions(chosen: Chosen) -> Figures:
    """Histograms of length and quality, pool and selection, as shares of documents."""
    out = {}
    for name, values in (("tokens", chosen.pool.tokens_N), ("quality", chosen.pool.quality_N)):
        low, high = np.percentile(values, (0, 99.5))
        edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
        clipped = np.clip(values, edges[0], edges[-1])
        pool, _ = np.histogram(clipped, edges)
        mine, _ = np.histogram(clipped[chosen.at], edges)
        out[name] = {
            "edges": edges.round(4).tolist(),
            "pool": (pool / max(pool.sum(), 1)).round(6).tolist(),
            "selected": (mine / max(mine.sum(), 1)).round(6).tolist(),
        }
    return out


def _duplicates(data: Profiled) -> Figures:
    facts = data.artifact.facts
    pairs = data.pool.pairs
    near = data.select.keep.near_dup
    width = (near or NearDup()).bands
    border: list[Figures] = []
    if near is not None and len(pairs):
        closest = pairs.sort((pl.col("jaccard") - near.jaccard).abs()).head(10)
        names, likes = data.pool.ids(closest["row"].to_numpy()), data.pool.ids(closest["like"].to_numpy())
        border = [
            {"id": a, "like": b, "jaccard": round(j, 4), "dropped": d}
            for a, b, j, d in zip(names, likes, closest["jaccard"], closest["dropped"], strict=True)
        ]
    curve = np.round(np.arange(0.3, 1.0001, 0.05), 2)
    dropped = facts["funnel"]["dropped"]
    return {
        "threshold": near.jaccard if near is not None else None,
        "exact": dropped.get("exact duplicate", {}).get("documents", 0),
        "near": dropped.get("near-duplicate", {}).get("documents", 0),
        "near_held_out": dropped.get("near-duplicate of held-out text", {}).get("documents", 0),
        "duplicate_ids": dropped.get("duplicate id", {}).get("documents", 0),
        "nearly": facts["near_pairs"]["nearly"],
        "bands": list(width),
        "s_curve": [[float(j), round(float(p), 4)] for j, p in zip(curve, chance(curve, *width), strict=True)],
        "recall_on_planted": facts["planted"],
        "borderline": border,
    }


def _clusters(data: Profiled, chosen: Chosen) -> Figures | None:
    if data.topics is None:
        return None
    facts, labels = data.topics.facts, chosen.pool.labels[CLUSTER]
    size, taken = (
        dict(zip(labels.values, some.counted().tolist(), strict=True)) for some in (labels, labels.take(chosen.at))
    )
    listed = [
        {"name": name, "group": group, "terms": terms, "documents": size.get(name, 0), "selected": taken.get(name, 0)}
        for name, group, terms in zip(facts["names"], facts["groups"], facts["terms"], strict=True)
    ]
    keys = ("silhouette", "silhouette_shuffled", "refit_ari", "sample", "tried")
    return {"k": facts["k"], "clusters": listed} | {key: facts[key] for key in keys}


def _tokens(data: Profiled, chosen: Chosen) -> Figures:
    budget, count = data.select.budget, data.select.tokens
    given = chosen.tokens if budget.in_tokens else len(chosen.at)
    how = "estimated from characters, words and marks (fitted on English prose, mean error 5.5 %)"
    if count is not None:
        how = f"column {count.column}" if count.column else "tokenizer"
        if count.tokenizer and count.sample:
            how = f"estimated, fitted to the tokenizer on {count.sample} documents"
    return {
        "total": chosen.tokens,
        "budget": budget.model_dump(),
        "error_percent": 100 * (given - budget.size) / budget.size,
        "counted": how,
        "mean_error": data.artifact.facts["token_error"],
    }


def _provenance(data: Profiled) -> Figures:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seed": data.seed,
        "request": digest(data.select.model_dump(mode="json", exclude={"batch_bytes"})),
        "data": data.artifact.content("pool.parquet", "ids.parquet"),
        "parts": [d.content("documents.parquet") for d, _ in data.parts],
        "topics": data.topics.digest if data.topics is not None else None,
        "versions": {name: version(name) for name in _LIBRARIES} | {"python": platform.python_version()},
        "cpu_seconds": round(time.process_time(), 2),
        "peak_megabytes": round(used.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1),
    }


def _paired(path: Path | None) -> Figures | None:
    if path is None:
        return None
    try:
        attached = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RequestError("the paired run cannot be read", where=str(path), found=str(error)) from None
    if not isinstance(attached, dict):
        raise RequestError("a paired run is a JSON object", where=str(path), found=type(attached).__name__)
    return attached
