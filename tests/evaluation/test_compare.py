"""Ratios, references and differences against loops over documents, whichever way is better."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.evaluation.compare import compare


@given(st.integers(0, 10_000), st.booleans())
def test_as_loops_over_documents(seed: int, lowest: bool) -> None:
    rng = np.random.default_rng(seed)
    models, documents, groups = rng.integers(2, 5), rng.integers(1, 12), rng.integers(1, 4)
    value, weight = rng.normal(size=(models, documents)), rng.integers(0, 5, documents)
    group, answered = rng.integers(0, groups, documents), rng.random((models, documents)) < 0.8
    answered[0] = True
    experts = list(range(models - 1))
    found = compare(
        value, weight, answered, group, groups, experts=experts, against=[models - 1], lowest=lowest, resamples=5, seed=0
    )

    def ratio(of: np.ndarray, may: np.ndarray, g: int) -> float | None:
        part = [d for d in range(documents) if may[d] and weight[d] and (g in (group[d], groups))]
        return sum(of[d] for d in part) / sum(weight[d] for d in part) if part else None

    def same(row: list, of: np.ndarray, may: np.ndarray) -> None:
        for g in range(groups + 1):
            assert row[g].value == pytest.approx(ratio(of, may, g))

    for m in range(models):
        same(found.models[m], value[m], answered[m])
    whole = [e for e in experts if all(answered[e][weight > 0])]
    sign = 1 if lowest else -1
    if weight.any():
        assert found.best == min(whole, key=lambda e: sign * ratio(value[e], answered[e], groups))
        same(found.best_expert, value[found.best], answered[found.best])
        for g in set(group[weight > 0]):
            assert found.oracle[g] == min(whole, key=lambda e: sign * ratio(value[e], answered[e], g))
        picked = np.array([value[found.oracle[g], d] for d, g in enumerate(group)])
        same(found.oracle_expert, picked, weight > 0)
    assert {(m, o) for m, o, _ in found.differences} == {
        (m, o) for m in range(models) for o in (found.best, models - 1) if m != o
    }
    for m, o, row in found.differences:
        same(row, value[m] - value[o], answered[m] & answered[o])
