"""Summaries as a run writes them, of any size."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def curve(rng: random.Random, end: float) -> list[list[float]]:
    return [[t * 8192, end + 5 * math.exp(-t / 25) + 0.05 * rng.random()] for t in range(1, 245, 2)]


def make_summary(
    experts: int = 3, mixtures: tuple[str, ...] = ("average", "learned"), groups: int = 3, seed: int = 0, **changes: Any
) -> dict[str, Any]:
    """A run with every part there is."""
    rng = random.Random(seed)
    domains = ["meetings", "code", "questions", "stories", "letters", "notes"]
    names = [domains[i] if i < len(domains) else f"expert-{i}" for i in range(experts)]
    group_names = names[:groups]
    level = {g: 2.4 + 0.5 * i for i, g in enumerate(group_names)}

    def entry(loss: float, tokens: int = 81_920) -> dict[str, Any]:
        ci = [round(loss - 0.03 - 0.02 * rng.random(), 6), round(loss + 0.03 + 0.02 * rng.random(), 6)]
        return {"tokens": tokens, "nll": loss, "perplexity": math.exp(loss), "ci95": ci, "documents": 160, "skipped": 0}

    def over(groups: dict[str, dict]) -> dict[str, dict]:
        mean = sum(e["nll"] for e in groups.values()) / len(groups)
        everything = entry(mean, sum(e["tokens"] for e in groups.values()))
        return {**groups, "all": {**everything, "documents": 160 * len(groups)}}

    losses: dict[str, Any] = {}
    for i, n in enumerate(names):
        losses[n] = over({g: entry(level[g] + (0 if g == n else 0.6 + 0.05 * i + 0.1 * rng.random())) for g in group_names})
    for k, m in enumerate(mixtures):
        losses[m] = over({g: entry(level[g] + 0.22 / (k + 1)) for g in group_names})
    losses["single"] = over({g: entry(level[g] + 0.02) for g in group_names})
    best = min(names, key=lambda n: losses[n]["all"]["nll"])
    losses["best_expert"] = {g: {**e, "expert": best} for g, e in losses[best].items()}
    losses["oracle"] = over({g: {**losses[g][g], "expert": g} for g in group_names})

    def choice(right: float) -> dict[str, Any]:
        rest = 1 - right
        shares = {"accuracy": right, "future": rest * 0.4, "past": rest * 0.5, "irrelevant": rest * 0.1}
        return {**shares, "n": 195, "ci95": [round(right - 0.06, 6), round(right + 0.06, 6)], "skipped": 0}

    choices = {n: {"all": choice(0.28 + 0.02 * i)} for i, n in enumerate([*names[:6], *mixtures])}
    differences = {
        m: {
            "best_expert": {"all": {"nll": -0.2 + 0.3 * k, "ci95": [-0.25 + 0.3 * k, -0.16 + 0.3 * k], "documents": 480}},
            "single": {"all": {"nll": 0.02 * k, "ci95": [0.02 * k - 0.01, 0.02 * k + 0.012], "documents": 480}},
        }
        for k, m in enumerate(mixtures)
    }

    def trained(name: str, loss: float, tokens: int, **more: Any) -> dict[str, Any]:
        return {"name": name, "tokens": tokens, "seconds": tokens / 5e4, "loss": loss, "curve": curve(rng, loss), **more}

    records = {
        sha(n): trained(
            n,
            2.4 + 0.1 * i,
            2_000_000,
            trained=i % 2 == 0,
            kind="full",
            corpus=n,
            parameters=1_120_000,
            valid_curve=[[t * 8192, 2.45 + 0.1 * i + 5 * math.exp(-t / 25)] for t in range(40, 245, 40)],
            **{"from": "base"},
        )
        for i, n in enumerate(names)
    }

    def weights(favourite: int, strength: float) -> list[float]:
        row = [1.0 + rng.random() * 0.3 * (strength > 0) for _ in names]
        row[favourite] += strength * len(names)
        return [w / sum(row) for w in row]

    routing = {}
    for k, m in enumerate(mixtures):
        by_group = {g: weights(i, k * 1.5) for i, g in enumerate(group_names)}
        use = [sum(row[u] for row in by_group.values()) / len(by_group) for u in range(experts)]
        routing[m] = {
            "experts": names,
            "utilization": use,
            "gini": 0.05 + 0.1 * k,
            "entropy": math.log(experts) * (1 - 0.4 * k),
            "confidence": 1 / experts + 0.4 * k,
            "mutual_information": 0.4 * k,
            "by_group": by_group,
            "by_position": {
                g: [weights(i, k * (1 - math.exp(-t / 30))) for t in range(256)] for i, g in enumerate(group_names)
            },
        }

    source = {
        "evaluation": "losses",
        "artifact": sha("evaluation"),
        "seed": 0,
        "bootstrap": 1000,
        "tokens": 245_760,
        "documents": 480,
        "removed": [],
        "data": {g: sha(f"blocks {g}") for g in group_names},
        "models": {m: sha(m) for m in (*names, *mixtures, "single")},
    }
    near = [{"id": "qmsum-17", "share": 0.62, "like": "qmsum-903"}]
    summary: dict[str, Any] = {
        "schema": 1,
        "name": "two-domains",
        "seed": 0,
        "recipe_hash": sha("recipe"),
        "versions": {"coterie": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "reuse": {"requested": experts, "distinct": experts, "trained": (experts + 1) // 2, "reused": experts // 2},
        "base": trained("base", 3.3, 2_000_000, digest=sha("base"), trained=False),
        "single": trained("single", 2.6, 8_000_000, digest=sha("single"), trained=True),
        "slots": {m: [{"slot": i, "name": n, "expert": sha(n)} for i, n in enumerate([*names, best])] for m in mixtures},
        "experts": records,
        "evaluation": {"losses": losses, "releases": choices},
        "differences": {"losses": differences} if mixtures else None,
        "routing": routing,
        "sources": {"losses": source, "releases": {**source, "evaluation": "choices", "data": {"file": sha("questions")}}},
        "leaks": {"evaluated": 480, "trained": 9_120, "exact": 0, "near": 1, "named": {"exact": [], "near": near}},
        "notes": ["learned was not evaluated on releases: it needs a date, and the questions have none."],
    }
    summary.update(changes)
    return {k: v for k, v in summary.items() if v is not None}


def write(out: Path, summary: dict[str, Any], metrics: list[dict] | None = None) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    (out / "summary.json").write_text(json.dumps(summary, allow_nan=False))
    if metrics is not None:
        (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    return out
