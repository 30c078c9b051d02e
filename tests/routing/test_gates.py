"""Gates and their closed forms against slow references."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coterie.routing.gates import Centroids, Gate, Gated, Ridge, auxiliary, balance, by_expert, entropy, z_loss


def draw(seed: int, N: int = 60, H: int = 7, U: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    expert_N = torch.randint(0, U, (N,), generator=generator)
    expert_N[:U] = torch.arange(U)
    return torch.randn(N, H, generator=generator) + 2 * expert_N[:, None] * torch.randn(H, generator=generator), expert_N


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("penalty", [1e-6, 0.1, 3.0])
def test_ridge_is_the_least_squares_solution_of_the_augmented_rows(intercept: bool, penalty: float) -> None:
    x_NH, expert_N = draw(0)
    ridge = Ridge(7)
    ridge.add(x_NH, expert_N)
    weight_UH, bias_U = ridge.solve(penalty, intercept)
    rows = torch.cat([x_NH, torch.ones(60, 1)], 1).double()[:, : 7 + intercept]
    scale = (penalty * x_NH.double().square().sum(0).mean()).sqrt()
    extra = torch.eye(7, 7 + intercept, dtype=torch.float64) * scale
    target = torch.cat([torch.nn.functional.one_hot(expert_N, 3).double(), torch.zeros(7, 3, dtype=torch.float64)])
    expected = torch.linalg.lstsq(torch.cat([rows, extra]), target).solution.T
    assert torch.allclose(weight_UH.double(), expected[:, :7], atol=1e-6)
    assert torch.allclose(bias_U.double(), expected[:, 7] if intercept else torch.zeros(3).double(), atol=1e-6)


@given(st.integers(0, 99), st.lists(st.integers(1, 59), max_size=4), st.booleans())
def test_ridge_from_parts_in_any_order_is_ridge_from_the_whole(seed: int, cuts: list[int], merged: bool) -> None:
    """An expert that first appears late is the same as one that was there from the start."""
    x_NH, expert_N = draw(seed)
    order = expert_N.argsort(stable=True) if seed % 2 else torch.arange(60)
    whole, parts = Ridge(7, 3), Ridge(7)
    whole.add(x_NH, expert_N)
    for rows in order.tensor_split(sorted(cuts)):
        if merged:
            part = Ridge(7)
            part.add(x_NH[rows], expert_N[rows])
            parts.merge(part)
        else:
            parts.add(x_NH[rows], expert_N[rows])
    for a, b in zip(whole.solve(), parts.solve(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_ridge_takes_weights_for_experts() -> None:
    x_NH, expert_N = draw(1)
    by_index, by_weight = Ridge(7), Ridge(7)
    by_index.add(x_NH, expert_N)
    by_weight.add(x_NH, torch.nn.functional.one_hot(expert_N, 3).float())
    assert torch.allclose(by_index.solve()[0], by_weight.solve()[0])


def test_ridge_has_a_solution_where_features_repeat() -> None:
    """Also where a whole feature is constant, as the last one of the sums is."""
    x_NH, expert_N = draw(2)
    twice_NH = torch.cat([x_NH, x_NH, torch.ones(60, 1)], 1)
    once, twice = Ridge(7), Ridge(15)
    once.add(x_NH, expert_N)
    twice.add(twice_NH, expert_N)
    (weight_UH, bias_U), (weight_U2, bias_U2) = once.solve(1e-9), twice.solve(1e-9)
    assert torch.allclose(x_NH @ weight_UH.T + bias_U, twice_NH @ weight_U2.T + bias_U2, atol=1e-4)


@pytest.mark.parametrize("intercept", [True, False])
def test_centroids_are_gaussians_with_one_diagonal_covariance(intercept: bool) -> None:
    x_NH, expert_N = draw(3)
    form = Centroids(7, 3)
    for rows in torch.arange(60).split(17):
        form.add(x_NH[rows], expert_N[rows])
    weight_UH, bias_U = form.solve(intercept)
    mean_UH = torch.stack([x_NH[expert_N == u].mean(0) for u in range(3)])
    within_H = torch.cat([x_NH[expert_N == u] - mean_UH[u] for u in range(3)]).square().mean(0)
    expected_NU = -((x_NH[:, None] - mean_UH).square() / within_H).sum(-1) / 2 / 7
    if intercept:
        found_NU = x_NH @ weight_UH.T + bias_U
        assert torch.allclose(found_NU - found_NU[:, :1], expected_NU - expected_NU[:, :1], atol=1e-4)
    else:
        assert not bias_U.any()
        expected_UH = (mean_UH - mean_UH.mean(0)) / within_H / 7
        assert torch.allclose(weight_UH, expected_UH, atol=1e-5)


def test_centroids_of_an_expert_without_examples_are_zero() -> None:
    x_NH, expert_N = draw(4)
    form = Centroids(7, 5)
    form.add(x_NH, expert_N)
    weight_UH, bias_U = form.solve()
    assert not weight_UH[3:].any()
    assert not bias_U[3:].any()


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 99), st.booleans())
def test_a_gate_is_the_standard_one(slots: int, top_k: int, seed: int, bias: bool) -> None:
    torch.manual_seed(seed)
    gate, x_NH = Gate(5, slots, top_k, bias), torch.randn(2, 3, 5)
    for parameter in gate.parameters():
        torch.nn.init.normal_(parameter)
    weight_NS = gate(x_NH).weight_NS
    for x_H, w_S in zip(x_NH.flatten(0, 1), weight_NS.flatten(0, 1), strict=True):
        p_S = (gate.weight @ x_H + (gate.bias if bias else 0)).softmax(0)
        kept = sorted(range(slots), key=lambda s: -p_S[s])[:top_k]
        total = sum(p_S[s] for s in kept)
        assert torch.allclose(w_S, torch.stack([p_S[s] / total if s in kept else torch.tensor(0.0) for s in range(slots)]))


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_a_gate_has_a_gradient_whatever_it_keeps(top_k: int | None) -> None:
    gate = Gate(5, 4, top_k)
    torch.nn.init.normal_(gate.weight)
    (gate(torch.randn(6, 5)).weight_NS * torch.randn(6, 4)).sum().backward()
    assert gate.weight.grad.abs().max() > 1e-3


def test_a_dense_gates_gradient_is_exact() -> None:
    gate = Gate(5, 4).double()
    x_NH, value_NS = torch.randn(6, 5).double(), torch.randn(6, 4)
    (gate(x_NH).weight_NS * value_NS).sum().backward()
    weight = gate.weight.detach().clone().requires_grad_()
    ((x_NH @ weight.T).softmax(-1) * value_NS).sum().backward()
    assert torch.allclose(gate.weight.grad, weight.grad, atol=1e-6)


def gated(*logits: float, N: int = 4) -> Gated:
    logits_NS = torch.tensor(logits).expand(N, -1)
    return Gated(logits_NS, logits_NS.softmax(-1))


def test_balance_is_of_distinct_experts() -> None:
    """Three slots of one expert and one of another: even weights on slots are uneven weights on experts."""
    seats = torch.tensor([0, 0, 0, 1])
    assert balance(gated(0.0, 0.0, 0.0, 0.0), seats, 2).item() == pytest.approx(2 * (0.75**2 + 0.25**2) - 1)
    third = torch.tensor(1 / 3).log().item()
    assert balance(gated(third, third, third, 0.0), seats, 2).item() == pytest.approx(0, abs=1e-6)
    assert balance(gated(50.0, 0.0, 0.0, 0.0), seats, 2).item() == pytest.approx(1)


def test_auxiliary_losses_are_means_over_gates_and_leave_padding_out() -> None:
    seats, counted_N = torch.arange(2), torch.tensor([True, True, False, False])
    one, two = gated(3.0, 0.0), gated(0.0, 3.0)
    mixed = Gated(torch.cat([one.logits_NS[:2], two.logits_NS[2:]]), torch.cat([one.weight_NS[:2], two.weight_NS[2:]]))
    for loss in (balance, entropy):
        assert loss(mixed, seats, 2, counted_N).item() == pytest.approx(loss(one, seats, 2).item())
    assert z_loss(one).item() == pytest.approx((torch.tensor([3.0, 0.0]).logsumexp(0) ** 2).item())
    pooled = auxiliary([one, two], seats, 2, balance_by=1.0).item()
    assert pooled == pytest.approx(balance(one, seats, 2).item())  # each layer is uneven, though both together are even
    total = auxiliary([one, two], seats, 2, counted_N, balance_by=2.0, z_by=0.5, entropy_by=-1.0).item()
    expected = sum(2 * balance(g, seats, 2) + 0.5 * z_loss(g) - entropy(g, seats, 2) for g in (one, two)) / 2
    assert total == pytest.approx(expected.item())


def test_balance_has_a_gradient_that_evens() -> None:
    logits_NS = torch.tensor([[2.0, 0.0]], requires_grad=True)
    balance(Gated(logits_NS, logits_NS.softmax(-1)), torch.arange(2), 2).backward()
    assert logits_NS.grad[0, 0] > 0 > logits_NS.grad[0, 1]


def test_weights_of_slots_that_share_an_expert_are_summed() -> None:
    weight_NS = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    assert torch.allclose(by_expert(weight_NS, torch.tensor([1, 0, 1, 2]), 4), torch.tensor([[0.2, 0.4, 0.4, 0.0]]))
