"""Figures of a selection: how its shares compare with targets, with the pool, and with random draws.

`V` values of a label, `K` of them that the pool has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float64
from scipy import stats

from coterie.select.candidates import Labels
from coterie.select.choose import Chosen
from coterie.shares import gini
from coterie.spec.json_types import Figures


def balance(share_V: Float64[np.ndarray, " V"], there_V: np.ndarray) -> dict[str, float]:
    """Of shares over the values that the pool has: entropy / log K, effective number exp(H), Gini, largest share,
    coverage."""
    p = share_V[there_V > 0]
    K = len(p)
    total = p.sum()
    p = p / total if total > 0 else p
    seen = p[p > 0]
    entropy = float(abs(stats.entropy(seen)))
    return {
        "entropy": float(entropy / np.log(K)) if K > 1 else 1.0,
        "effective": float(np.exp(entropy)),
        "gini": gini(p),
        "largest": float(p.max()) if K else 0.0,
        "coverage": len(seen) / K if K else 0.0,
        "of": K,
    }


def distance(p: np.ndarray, q: np.ndarray) -> dict[str, float]:
    """Total variation and Kullback-Leibler divergence (nats; infinite where q has nothing) of p from q."""
    p, q = p / max(p.sum(), 1e-300), q / max(q.sum(), 1e-300)
    return {"tv": float(np.abs(p - q).sum() / 2), "kl": float(stats.entropy(p, q))}


def label_figures(labels: Labels, chosen: np.ndarray, size_N: np.ndarray) -> dict[str, float]:
    """Balance of what was chosen over one label, and its distance from the pool's shares."""
    V = len(labels.values)
    pool = np.bincount(labels.code_N, size_N, minlength=V)
    mine = np.bincount(labels.code_N[chosen], size_N[chosen], minlength=V)
    return balance(mine, pool) | {f"{k}_to_pool": v for k, v in distance(mine, pool).items()}


def of_selection(chosen: Chosen) -> Figures:
    """Figures that are compared between strategies: tokens, documents, lengths, quality, balance over every label."""
    pool, at = chosen.pool, chosen.at
    tokens = pool.tokens_N[at]
    rank = chosen.parts.get("quality_rank")
    return {
        "documents": len(at),
        "tokens": int(tokens.sum()),
        "mean_tokens": float(tokens.mean()) if len(at) else 0.0,
        "mean_quality": float(pool.quality_N[at].mean()) if len(at) else 0.0,
        "mean_quality_rank": float(rank[at].mean()) if rank is not None and len(at) else None,
        "ks_length": ks(pool.tokens_N, tokens),
        "ks_quality": ks(pool.quality_N, pool.quality_N[at]),
        "labels": {name: label_figures(labels, at, pool.tokens_N) for name, labels in pool.labels.items()},
    }


def ks(pool: np.ndarray, mine: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of a selection from its pool."""
    return float(stats.ks_2samp(pool, mine, method="asymp").statistic) if len(mine) else 1.0


def band(draw: Callable[[int], Chosen], draws: int = 20) -> Figures:
    """Mean and 95 % band of the figures of random draws: what chance alone gives."""
    drawn = [of_selection(draw(seed)) for seed in range(draws)]

    def over(values: Sequence[float]) -> dict[str, float]:
        low, high = np.percentile(values, (2.5, 97.5))
        return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}

    plain = ("documents", "tokens", "mean_tokens", "mean_quality", "ks_length", "ks_quality")
    labels = {
        name: {key: over([d["labels"][name][key] for d in drawn]) for key in figures}
        for name, figures in drawn[0]["labels"].items()
    }
    return {key: over([d[key] for d in drawn]) for key in plain} | {"labels": labels, "draws": draws}


def axis_figures(chosen: Chosen) -> Figures:
    """Per axis: target, capacity, selected, deficit of each value; distance to the target; balance."""
    size = chosen.pool.size_N(chosen.budget.in_tokens)
    out: Figures = {}
    mine_C = np.bincount(chosen.cell_N[chosen.at], size[chosen.at], minlength=len(chosen.cells))
    for name, margin in chosen.axes.items():
        used = margin.group_C >= 0
        selected, there = (
            np.bincount(margin.group_C[used], some_C[used], minlength=len(margin.groups))
            for some_C in (mine_C, chosen.capacity_C)
        )
        rows = [
            {"value": g, "target": float(t), "capacity": float(c), "selected": float(s), "deficit": max(0.0, float(t - s))}
            for g, t, c, s in zip(margin.groups, margin.target_G, there, selected, strict=True)
        ]
        out[name] = {"values": rows} | distance(selected, margin.target_G) | balance(selected, there)
    return out


def cell_figures(chosen: Chosen) -> list[Figures]:
    """Per cell: quota, capacity, selected, share of the cell taken, percentiles of quality and length, the cut-off score."""
    pool, size = chosen.pool, chosen.pool.size_N(chosen.budget.in_tokens)
    by_cell = chosen.at[np.argsort(chosen.cell_N[chosen.at], kind="stable")]
    bounds = np.searchsorted(chosen.cell_N[by_cell], np.arange(len(chosen.cells) + 1))
    rows = []
    for c, cell in enumerate(chosen.cells):
        mine = by_cell[bounds[c] : bounds[c + 1]]
        row: Figures = {
            "cell": list(cell),
            "quota": float(chosen.quota_C[c]),
            "capacity": float(chosen.capacity_C[c]),
            "selected": float(size[mine].sum()),
            "documents": len(mine),
            "taken": float(size[mine].sum() / chosen.capacity_C[c]) if chosen.capacity_C[c] else 0.0,
        }
        if len(mine):
            row["quality"] = np.percentile(pool.quality_N[mine], (5, 50, 95)).round(4).tolist()
            row["tokens"] = np.percentile(pool.tokens_N[mine], (5, 50, 95)).round(1).tolist()
            row["cutoff"] = float(chosen.parts["score"][mine].min())
        rows.append(row)
    return rows


def batch_mix(chosen: Chosen, axis: str, batch_tokens: int) -> Mapping[str, float]:
    """Entropy / log K of each batch of consecutive documents over one axis: its least, its mean, and the whole's."""
    labels, at = chosen.pool.labels[axis], chosen.at
    V, tokens = len(labels.values), chosen.pool.tokens_N[at]
    batch = np.minimum(np.cumsum(tokens) - 1, tokens.sum() - 1) // max(batch_tokens, 1)
    table = np.zeros((int(batch.max()) + 1, V)) if len(at) else np.zeros((1, V))
    np.add.at(table, (batch, labels.code_N[at]), tokens)
    there = table.sum(0)
    each = [balance(row, there)["entropy"] for row in table[:-1]] or [balance(table[0], there)["entropy"]]
    return {
        "batch_tokens": batch_tokens,
        "batches": len(table),
        "least": float(min(each)),
        "mean": float(np.mean(each)),
        "whole": balance(there, there)["entropy"],
    }
