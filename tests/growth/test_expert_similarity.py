"""Alike and merged, against updates that are multiplied out."""

from __future__ import annotations

import pytest
import torch
from tests.mixtures.adapters.cases import adapter, base

from coterie.errors import RequestError
from coterie.growth.expert_similarity import merged, similarities
from coterie.models.lora_files import Adapter


def whole(mine: Adapter, like: Adapter) -> torch.Tensor:
    """All updates of an expert, multiplied out, one after the other."""
    parts = []
    for name, f in like.items():
        if name in mine:
            A, B, scale = mine[name]
            parts.append((scale * B.double() @ A.double()).flatten())
        else:
            parts.append(torch.zeros(f.B_OR.shape[0] * f.A_RI.shape[1], dtype=torch.float64))
    return torch.cat(parts)


def test_similarity_is_the_cosine_of_the_updates() -> None:
    model = base()
    some = {"a": adapter(model, 2, seed=1), "b": adapter(model, 3, seed=2, only={"q_proj"}), "c": adapter(model, 4, seed=3)}
    full = {name: whole(mine, some["a"]) for name, mine in some.items()}
    for (a, b), found in similarities(some).items():
        assert found == pytest.approx(torch.cosine_similarity(full[a], full[b], dim=0).item(), abs=1e-9)
    twice = {"a": some["a"], "again": some["a"]}
    assert similarities(twice)["a", "again"] == pytest.approx(1.0)


def test_a_merge_of_full_rank_is_the_weighted_sum_and_of_less_the_best() -> None:
    model = base()
    one, two = adapter(model, 2, seed=1), adapter(model, 3, seed=2, only={"q_proj", "up_proj"})
    target = 0.3 * whole(one, one) + 0.7 * whole(two, one)
    exact, lost = merged(one, two, 0.3, rank=5)
    assert lost == pytest.approx(0.0, abs=1e-9)
    torch.testing.assert_close(whole(exact, one), target, atol=1e-5, rtol=1e-5)
    less, lost = merged(one, two, 0.3)
    assert {f.A_RI.shape[0] for f in less.values()} == {2, 3}
    off = (whole(less, one) - target).square().sum() / target.square().sum()
    assert lost == pytest.approx(off.item(), rel=1e-3)
    for name in two:  # Eckart and Young: no update of the rank is nearer
        A = 0.3 * one[name].scale * one[name].B_OR @ one[name].A_RI + 0.7 * two[name].scale * two[name].B_OR @ two[name].A_RI
        S = torch.linalg.svdvals(A.double())
        got = (less[name].B_OR @ less[name].A_RI - A).double().square().sum()
        assert got == pytest.approx(S[3:].square().sum().item(), abs=1e-6)


def test_equal_experts_merge_into_themselves() -> None:
    model = base()
    one = adapter(model, 3, seed=1)
    same, lost = merged(one, one, 0.4)
    assert lost == pytest.approx(0.0, abs=1e-9)
    torch.testing.assert_close(whole(same, one), whole(one, one), atol=1e-5, rtol=1e-5)
    with pytest.raises(RequestError, match="between 0 and 1"):
        merged(one, one, 2.0)
