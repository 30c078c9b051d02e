"""Routers: causal, independent of the ineligible, resumable, and equal to their formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tests.routing.cases import RECIPES, V, name, random_inputs, random_router, recipes

from coterie.routing.logits_to_weights import Policy
from coterie.routing.output_routers import Linear, OutputRouter, Posterior
from coterie.routing.routers import RouterModule


def weights(router: RouterModule, inputs: tuple, state: dict | None = None) -> torch.Tensor:
    ids, position, eligible, evidence = inputs
    logits, _ = router(ids, position, eligible, evidence, state)
    return Policy()(logits, torch.zeros(logits.shape[-1]), eligible)


@given(recipes, st.integers(1, 4), st.integers(2, 12), st.data())
def test_causal_bitwise(recipe: object, U: int, T: int, data: st.DataObject) -> None:
    router, inputs = random_router(recipe, U), random_inputs(2, T, U)
    at = data.draw(st.integers(1, T - 1))
    before = weights(router, inputs)
    inputs[0][:, at] = (inputs[0][:, at] + 1) % V
    inputs[3][:, at] -= 1
    assert torch.equal(weights(router, inputs)[:, :at], before[:, :at])


@given(recipes, st.integers(2, 4), st.integers(1, 9))
def test_an_ineligible_expert_is_not_heard(recipe: object, U: int, T: int) -> None:
    router, inputs = random_router(recipe, U), random_inputs(2, T, U)
    quiet = weights(router, inputs)
    loud = torch.where(inputs[2], inputs[3], torch.nan)
    assert torch.equal(weights(router, (*inputs[:3], loud)), quiet)
    assert (quiet.exp()[~inputs[2].expand_as(quiet)] == 0).all()


@given(recipes, st.integers(1, 4), st.integers(2, 12), st.data())
def test_goes_on_from_its_state(recipe: object, U: int, T: int, data: st.DataObject) -> None:
    router, (ids, position, eligible, evidence) = random_router(recipe, U), random_inputs(2, T, U)
    cut = data.draw(st.integers(1, T - 1))
    whole, _ = router(ids, position, eligible, evidence)
    first, state = router(ids[:, :cut], position[:, :cut], eligible, evidence[:, :cut])
    rest, _ = router(ids[:, cut:], position[:, cut:], eligible, evidence[:, cut:], state)
    assert torch.allclose(torch.cat([first, rest], dim=1), whole, atol=1e-4)


@given(recipes, st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))
def test_packed_is_alone(recipe: object, U: int, first: int, second: int) -> None:
    router = random_router(recipe, U)
    parts = [random_inputs(1, T, U) for T in (first, second)]
    eligible = torch.cat([e.expand(1, T, U) for (_, _, e, _), T in zip(parts, (first, second), strict=True)], dim=1)
    ids, position, evidence = (torch.cat([p[i] for p in parts], dim=1) for i in (0, 1, 3))
    packed = weights(router, (ids, position, eligible, evidence))
    assert torch.allclose(packed, torch.cat([weights(router, p) for p in parts], dim=1), atol=1e-6)


def test_posterior_is_bayes() -> None:
    """With decay = tau = 1: prior times likelihood, normalised."""
    ids, position, _, evidence = random_inputs(1, 6, 3)
    router = Posterior(fit=False).build(3, V)
    everyone = torch.ones(1, 1, 3, dtype=torch.bool)
    expected = evidence.cumsum(1).softmax(-1)
    assert torch.allclose(weights(router, (ids, position, everyone, evidence)).exp(), expected, atol=1e-6)


def test_posterior_follows_the_recipe_s_formula() -> None:
    ids, position, eligible, evidence = random_inputs(1, 7, 2)
    router = random_router(Posterior(), 2)
    decay, tau = router.evidence.decay_logit.sigmoid(), router.evidence.log_tau.exp()
    logits, _ = router(ids, position, torch.ones_like(eligible), evidence)
    for t in range(7):  # predicts token t + 1 from tokens u <= t
        total = sum(decay ** (t + 1 - u) * evidence[0, u] for u in range(t + 1))
        assert torch.allclose(logits[0, t], router.log_prior_U + total / tau, atol=1e-4)


def test_linear_is_linear_in_token_frequencies() -> None:
    ids, position, eligible, _ = random_inputs(1, 9, 3)
    router = random_router(Linear(kind="linear"), 3)
    table, recent = router.tokens.table_V2W, router.tokens.decay_logit.sigmoid()
    smoothing = router.tokens.log_smoothing.exp()
    logits, _ = router(ids, position, eligible)
    for t in range(9):
        one_hot = F.one_hot(ids[0, : t + 1], V).float()
        age = recent ** torch.arange(t, -1, -1)
        even = one_hot.sum(0) / (t + 1 + smoothing)
        late = (age[:, None] * one_hot).sum(0) / (age.sum() + smoothing)
        expected = 10 * (even @ table[:, :3] + late @ table[:, 3:]) + router.bias_U
        assert torch.allclose(logits[0, t], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [r for r in RECIPES if getattr(r, "features", None) == ("tokens",)], ids=name)
def test_starts_uniform_or_as_the_posterior(kind: OutputRouter) -> None:
    inputs = random_inputs(2, 5, 3)
    plain = kind.build(3, V)
    assert (plain(*inputs)[0] == 0).all()
    with_posterior = kind.model_copy(update={"features": ("tokens", "posterior")}).build(3, V)
    posterior = Posterior(decay=0.95).build(3, V)
    assert torch.allclose(weights(with_posterior, inputs), weights(posterior, inputs), atol=1e-5)


@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_fresh_parameters_come_from_the_seed_alone(recipe: object) -> None:
    spec = recipe
    torch.manual_seed(1)
    one = spec.build(3, V, seed=5).state_dict()
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))
    two = spec.build(3, V, seed=5).state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
