"""Weights against the softmax over slots, written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coterie.routing.logits_to_weights import Policy

counts = st.lists(st.integers(1, 4), min_size=1, max_size=5)


def cases(U: int, data: st.DataObject) -> tuple[torch.Tensor, torch.Tensor]:
    logits_BTU = 3 * torch.randn(2, 3, U)
    eligible_BU = torch.tensor(data.draw(st.lists(st.lists(st.booleans(), min_size=U, max_size=U), min_size=2, max_size=2)))
    eligible_BU[~eligible_BU.any(1), 0] = True
    return logits_BTU, eligible_BU[:, None]


@given(counts, st.floats(0.2, 3), st.data())
def test_dense_is_the_softmax_over_slots(count: list[int], temperature: float, data: st.DataObject) -> None:
    logits_BTU, eligible_B1U = cases(len(count), data)
    weight_BTU = Policy(temperature)(logits_BTU, torch.tensor(count).float().log(), eligible_B1U).exp()
    of_slot = torch.repeat_interleave(torch.arange(len(count)), torch.tensor(count))
    masked_BTS = (logits_BTU / temperature)[..., of_slot].masked_fill(~eligible_B1U[..., of_slot], -torch.inf)
    slots_BTS = masked_BTS.softmax(-1)
    for u in range(len(count)):
        assert torch.allclose(weight_BTU[..., u], slots_BTS[..., of_slot == u].sum(-1), atol=1e-6)
    assert (weight_BTU[~eligible_B1U.expand_as(weight_BTU)] == 0).all()


@given(counts, st.integers(1, 6), st.data())
def test_top_k_keeps_the_k_largest_experts(count: list[int], k: int, data: st.DataObject) -> None:
    logits_BTU, eligible_B1U = cases(len(count), data)
    log_count_U = torch.tensor(count).float().log()
    dense_BTU = Policy()(logits_BTU, log_count_U, eligible_B1U).exp()
    weight_BTU = Policy(top_k=k)(logits_BTU, log_count_U, eligible_B1U).exp()
    for dense_U, weight_U in zip(dense_BTU.flatten(0, 1), weight_BTU.flatten(0, 1), strict=True):
        best = sorted(range(len(count)), key=lambda u: (-dense_U[u].item(), u))[:k]
        kept_U = torch.zeros_like(dense_U)
        kept_U[best] = dense_U[best]
        assert torch.allclose(weight_U, kept_U / kept_U.sum(), atol=1e-6)
        assert (weight_U[kept_U == 0] == 0).all()


@given(counts, st.floats(0.01, 1), st.data())
def test_top_p_keeps_the_fewest_that_reach_p(count: list[int], p: float, data: st.DataObject) -> None:
    logits_BTU, eligible_B1U = cases(len(count), data)
    log_count_U = torch.tensor(count).float().log()
    dense_BTU = Policy()(logits_BTU, log_count_U, eligible_B1U).exp()
    weight_BTU = Policy(top_p=p)(logits_BTU, log_count_U, eligible_B1U).exp()
    for dense_U, weight_U in zip(dense_BTU.flatten(0, 1), weight_BTU.flatten(0, 1), strict=True):
        kept = weight_U > 0
        assert dense_U[kept].sum() >= p - 1e-5
        assert dense_U[kept].sum() - dense_U[kept].min() < p + 1e-5
        assert dense_U[kept].min() >= dense_U[~kept].max() if (~kept).any() else True
        assert abs(weight_U.sum() - 1) < 1e-5


def test_top_p_that_the_largest_reach_exactly_keeps_no_more() -> None:
    weight_U = Policy(top_p=0.5)(torch.zeros(1, 1, 4), torch.zeros(4), torch.ones(1, 1, 4, dtype=torch.bool)).exp()[0, 0]
    assert weight_U.tolist() == pytest.approx([0.5, 0.5, 0, 0])


@pytest.mark.parametrize("policy", [Policy(), Policy(0.5), Policy(top_k=1), Policy(top_k=2), Policy(top_p=0.5)])
def test_gradients_are_finite_and_reach_every_eligible_logit(policy: Policy) -> None:
    logits_BTU = torch.randn(2, 3, 4, requires_grad=True)
    eligible_B1U = torch.tensor([[[True, True, False, True]], [[False, False, True, False]]])
    logw_BTU = policy(logits_BTU, torch.zeros(4), eligible_B1U)
    logp_BTU = torch.randn(2, 3, 4)
    torch.where(logw_BTU.isneginf(), -torch.inf, logw_BTU + logp_BTU).logsumexp(-1).sum().backward()
    assert logits_BTU.grad is not None
    assert logits_BTU.grad.isfinite().all()
    assert (logits_BTU.grad[~eligible_B1U.expand(2, 3, 4)] == 0).all()
    if policy.top_k != 1 and policy.top_p is None:  # these two may keep one expert, whose weight is 1 whatever its logit
        assert (logits_BTU.grad[0][..., [0, 1, 3]].abs().sum(0) > 0).sum() >= 2


def test_nan_of_an_ineligible_expert_is_not_heard() -> None:
    logits_BTU, eligible_B1U = torch.randn(1, 2, 3), torch.tensor([[[True, False, True]]])
    quiet = Policy(top_k=1)(logits_BTU, torch.zeros(3), eligible_B1U)
    logits_BTU[..., 1] = torch.nan
    assert torch.equal(Policy(top_k=1)(logits_BTU, torch.zeros(3), eligible_B1U), quiet)
