"""Figures about routing against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coterie.routing.statistics import Usage
from coterie.shares import gini


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 3), st.integers(0, 10_000))
def test_against_definitions(M: int, U: int, G: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight_MU = torch.randn(M, U, generator=generator, dtype=torch.float64).softmax(-1)
    group_M = torch.randint(0, G, (M,), generator=generator)
    usage = Usage(U, G)
    for part, group in zip(weight_MU.split(7), group_M.split(7), strict=True):
        usage.add(part, group)
    figures = usage.summary()
    w = weight_MU.double().numpy()
    assert figures["utilization"] == pytest.approx(w.mean(0).tolist())
    assert figures["entropy"] == pytest.approx(-(w * np.log(w)).sum(1).mean())
    assert figures["confidence"] == pytest.approx(w.max(1).mean())
    mean = w.mean(0)
    assert figures["gini"] == pytest.approx(np.abs(mean[:, None] - mean[None]).mean() / (2 * mean.mean()), abs=1e-12)
    joint = np.stack([w[group_M.numpy() == g].sum(0) for g in range(G)]) / M
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    information = sum(j * math.log(j / a) for j, a in zip(joint.flat, apart.flat, strict=True) if j > 0)
    assert figures["mutual_information"] == pytest.approx(max(information, 0), abs=1e-9)


def test_extremes() -> None:
    assert gini(np.array([0.25] * 4)) == pytest.approx(0)
    assert gini(np.array([1.0, 0, 0, 0])) == pytest.approx(0.75)
    usage = Usage(2, 2)
    usage.add(torch.eye(2).repeat(5, 1), torch.tensor([0, 1]).repeat(5))
    assert usage.summary()["mutual_information"] == pytest.approx(math.log(2))
    assert usage.summary()["by_group"] == [[1, 0], [0, 1]]
    assert Usage(3).summary() == {}
