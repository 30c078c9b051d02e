"""Fitting on cached scores: it learns, stops early, keeps the best, and is repeatable."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.routing.cases import RECIPES, V, name, random_inputs, random_router

from coterie.routing.fit import Scored, fit, objective
from coterie.routing.fit_settings import FitSettings
from coterie.routing.output_routers import Linear, Mlp, OutputRouter, Uniform

QUICK = FitSettings(epochs=8, learning_rate=0.05, batch_size=8)
NO_PRIOR = torch.zeros(2)


def two_domains(N: int = 40, T: int = 16, seed: int = 0) -> Scored:
    """Rows of two kinds of tokens; each expert is good at one kind."""
    generator = torch.Generator().manual_seed(seed)
    domain_N = torch.arange(N) % 2
    ids_NT = torch.randint(0, V // 2, (N, T), generator=generator) + V // 2 * domain_N[:, None]
    good, bad = -1.0, -4.0
    logp_UNT1 = torch.where(domain_N[None, :, None] == torch.arange(2)[:, None, None], good, bad)
    logp_UNT1 = logp_UNT1 + 0.1 * torch.randn(2, N, T - 1, generator=generator)
    position_NT = torch.arange(T).expand(N, T)
    return Scored(ids_NT, position_NT, position_NT > 0, logp_UNT1, torch.ones(N, 1, 2, dtype=torch.bool))


def held(data: Scored) -> torch.Tensor:
    return (torch.arange(len(data)) % 5 == 0)[:, None].expand_as(data.ids_NT)


@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.fitting is not None], ids=name)
def test_learns_who_is_good_where(recipe: OutputRouter) -> None:
    data = two_domains()
    router = recipe.build(2, V)
    trace = fit(router, data, held(data), NO_PRIOR, QUICK, seed=0)
    best = min(t["held"] for t in trace)
    assert trace[0]["held"] > 1.03
    assert best < trace[0]["held"] - (
        0.01 if trace[0]["held"] > 1.05 else 0.003
    )  # who starts as the posterior is good already
    nll, _ = objective(router, replace(data, target_NT=data.target_NT & held(data)), NO_PRIOR, QUICK)
    assert nll.item() / (held(data) & data.target_NT).sum() == pytest.approx(best, rel=1e-4)


def test_the_best_state_is_kept_and_patience_ends_it() -> None:
    """Held-out rows that contradict the training rows: every step makes it worse, so the start is kept."""
    data = two_domains()
    contrary = data.logp_UNT1.clone()
    contrary[:, held(data)[:, 0]] = contrary[:, held(data)[:, 0]].flip(0)
    data = replace(data, logp_UNT1=contrary)
    router = Linear(kind="linear").build(2, V)
    start = {k: v.clone() for k, v in router.state_dict().items()}
    trace = fit(router, data, held(data), NO_PRIOR, QUICK.model_copy(update={"patience": 2}), seed=0)
    assert len(trace) == 3
    assert all(torch.equal(start[k], v) for k, v in router.state_dict().items())


def test_held_out_tokens_teach_nothing() -> None:
    data, states = two_domains(), []
    for shift in (0.0, -3.0):
        other = data.logp_UNT1.clone()
        other[0, held(data)[:, 0]] += shift
        router = Linear(kind="linear").build(2, V)
        fit(router, replace(data, logp_UNT1=other), held(data), NO_PRIOR, QUICK.model_copy(update={"epochs": 1}), seed=0)
        states.append(router.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_repeatable_and_seeded() -> None:
    data, states = two_domains(), []
    for seed in (1, 1, 2):
        router = Mlp(kind="mlp").build(2, V, seed)
        torch.manual_seed(len(states))  # the global generator plays no part
        fit(router, data, held(data), NO_PRIOR, QUICK, seed=seed)
        states.append(router.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])


@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_gradients_against_finite_differences(recipe: object) -> None:
    router = random_router(recipe, 3).double()
    ids, position, eligible, _ = random_inputs(2, 5, 3)
    data = Scored(ids, position, position > 0, -torch.rand(3, 2, 4, dtype=torch.float64), eligible)
    parameters = [p for p in router.parameters() if p.requires_grad]
    settings = FitSettings(entropy=0.3, z=0.1, temperature=0.7)  # the balance loss holds its first factor constant

    def loss(*values: torch.Tensor) -> torch.Tensor:
        named = dict(zip((n for n, _ in router.named_parameters()), values, strict=True))
        nll, aux = torch.func.functional_call(
            _Objective(router, data, settings), {f"router.{n}": v for n, v in named.items()}
        )
        return nll + aux

    assert not parameters or torch.autograd.gradcheck(loss, tuple(p.detach().requires_grad_() for p in parameters))


class _Objective(torch.nn.Module):
    def __init__(self, router: torch.nn.Module, data: Scored, settings: FitSettings) -> None:
        super().__init__()
        self.router, self.data, self.settings = router, data, settings

    def forward(self) -> tuple[torch.Tensor, torch.Tensor]:
        return objective(self.router, self.data, torch.zeros(3, dtype=torch.float64), self.settings)


def test_balance_is_the_one_of_gates() -> None:
    """Switch's loss over distinct experts: U times the sum of use (held constant) times wanted weight, minus 1."""
    data = two_domains()
    router = random_router(Linear(), 2)
    settings = QUICK.model_copy(update={"balance": 0.7})
    _, aux = objective(router, data, NO_PRIOR, settings)
    counted = data.target_NT[:, 1:]
    logits = router(data.ids_NT, data.position_NT, data.eligible_NTU, data.evidence_NTU)[0][:, :-1]
    mean_U = logits.softmax(-1)[counted].mean(0)
    assert aux.item() == pytest.approx(
        0.7 * counted.sum().item() * (2 * mean_U.square().sum().item() - 1), rel=1e-4, abs=1e-4
    )
    (slow,) = torch.autograd.grad(2 * (mean_U.detach() * mean_U).sum(), router.bias_U, retain_graph=True)
    (fast,) = torch.autograd.grad(aux / (0.7 * counted.sum()), router.bias_U)
    assert torch.allclose(slow, fast, atol=1e-6)


def test_regularisers_pull_where_they_say() -> None:
    data = two_domains()
    flat = replace(data, logp_UNT1=torch.full_like(data.logp_UNT1, -2.0))
    flat.logp_UNT1[0] += 0.05  # a little better everywhere

    def use(**coefficients: float) -> tuple[float, float]:
        router = Linear(kind="linear").build(2, V)
        settings = QUICK.model_copy(update={"epochs": 20, "patience": 20, **coefficients})
        fit(router, flat, held(flat), NO_PRIOR, settings, seed=0)
        weight = router(flat.ids_NT, flat.position_NT, flat.eligible_NTU)[0].softmax(-1)
        return weight.mean((0, 1))[0].item(), torch.special.entr(weight).sum(-1).mean().item()

    plain, balanced, sharp = use(), use(balance=1.0), use(entropy=0.1)
    assert balanced[0] < plain[0]
    assert abs(balanced[0] - 0.5) < 0.1
    assert sharp[1] < plain[1]


def test_padding_and_prompts_do_not_count() -> None:
    data = two_domains()
    outside = torch.rand(data.target_NT.shape) < 0.4
    data = replace(data, target_NT=data.target_NT & ~outside)
    noisy = data.logp_UNT1.clone()
    noisy[:, outside[:, 1:]] = -50.0
    settings, states = QUICK.model_copy(update={"balance": 0.5, "entropy": 0.1}), []
    for logp in (data.logp_UNT1, noisy):
        router = Linear(kind="linear").build(2, V)
        fit(router, replace(data, logp_UNT1=logp), held(data), NO_PRIOR, settings, seed=0)
        states.append(router.state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_equal_experts_cannot_be_told_apart() -> None:
    """Two experts with equal scores: nothing to learn but noise, and the loss is theirs."""
    data = two_domains()
    data = replace(data, logp_UNT1=data.logp_UNT1[:1].expand(2, -1, -1).contiguous())
    router = Linear(kind="linear").build(2, V)
    trace = fit(router, data, held(data), NO_PRIOR, QUICK, seed=0)
    own = -data.logp_UNT1[0][held(data)[:, 1:]].mean().item()
    assert all(t["held"] == pytest.approx(own, rel=1e-5) for t in trace)


def test_counts_are_a_prior_that_is_not_fitted() -> None:
    data = two_domains()
    nll, _ = objective(Uniform().build(2, V), data, torch.tensor([3.0, 1.0]).log(), QUICK)
    expected = -torch.logsumexp(data.logp_UNT1 + torch.tensor([0.75, 0.25]).log()[:, None, None], 0).sum()
    assert nll.item() == pytest.approx(expected.item(), rel=1e-5)


def test_nothing_to_hold_out_uses_everything() -> None:
    data = two_domains(4)
    nobody = torch.zeros_like(data.ids_NT, dtype=torch.bool)
    trace = fit(Linear(kind="linear").build(2, V), data, nobody, NO_PRIOR, QUICK, seed=0)
    assert trace[0]["train"] == trace[0]["held"]


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    data = two_domains()
    data.logp_UNT1[0, 0, 3] = math.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        fit(Linear(kind="linear").build(2, V), data, held(data), NO_PRIOR, QUICK, seed=0)
