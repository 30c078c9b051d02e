"""What must always hold of mixtures at the outputs: equal experts, one-hot, mass, masked is absent, causal."""

from __future__ import annotations

import copy
from datetime import timedelta
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.invariants.cases import DAY, TIMES, Runs, ids, mixture, settings, some
from tests.tiny import V, gpt2, llama, pool

from coterie.errors import RequestError
from coterie.routing.output_routers import Linear, Posterior

times = st.sampled_from(TIMES)


@given(settings(), times)
def test_1_equal_experts_are_that_expert(case: dict[str, Any], time: str | None) -> None:
    expert, x_BT = pool()[1], ids()
    m = mixture([copy.deepcopy(expert) for _ in case["counts"]], **case)
    with torch.no_grad():
        own_BTV = expert(x_BT).logits.log_softmax(-1)
    assert (m.log_probs(x_BT, time=time) - own_BTV).abs().max() <= 1e-5
    own_BT1 = -own_BTV[:, :-1].gather(-1, x_BT[:, 1:, None]).squeeze(-1)
    assert (m.nll(x_BT, time=time) - own_BT1).abs().max() <= 1e-5


@given(settings(dated=False), st.data())
def test_2_one_hot_is_that_expert(case: dict[str, Any], data: st.DataObject) -> None:
    """By a huge bias, and by top-1 wherever it falls."""
    m, x_BT = mixture(some(case["counts"]), **case), ids()
    with torch.no_grad():
        own_UBTV = torch.stack([e(x_BT).logits.log_softmax(-1) for e in m.experts])
    chosen = data.draw(st.integers(0, len(case["counts"]) - 1))
    for name, parameter in m.router.named_parameters():
        if name in ("bias_U", "log_prior_U"):
            parameter.data[chosen] += 1e5
            assert (m.log_probs(x_BT) - own_UBTV[chosen]).abs().max() <= 1e-5
            slots_BTS = m.weights(x_BT)
            assert (slots_BTS.sum(-1) - 1).abs().max() <= 1e-5
            assert all(slots_BTS[..., s].max() == 0 for s, slot in enumerate(m.slots) if slot["expert"] != chosen)
    m.policy = type(m.policy)(top_k=1)
    of_slot = torch.tensor([slot["expert"] for slot in m.slots])
    best_BT = of_slot[m.weights(x_BT).argmax(-1)]
    picked_BTV = own_UBTV.movedim(0, 2).gather(2, best_BT[..., None, None].expand(-1, -1, 1, V)).squeeze(2)
    assert (m.log_probs(x_BT) - picked_BTV).abs().max() <= 1e-5


@given(settings(), st.lists(times, min_size=2, max_size=2))
def test_3_mass_is_1_everywhere(case: dict[str, Any], time: list[str | None]) -> None:
    m, x_BT = mixture(some(case["counts"]), **case), ids()
    assert (m.log_probs(x_BT, time=time).double().exp().sum(-1) - 1).abs().max() <= 1e-5
    assert (m.weights(x_BT, time=time).sum(-1) - 1).abs().max() <= 1e-5


@given(settings().filter(lambda case: len(case["counts"]) > 1), st.sampled_from(["strict", "inclusive"]), st.data())
def test_4_masked_is_absent(case: dict[str, Any], rule: str, data: st.DataObject) -> None:
    """An ineligible expert's weights are spoilt, then deleted: bitwise the same answers, and it was never run."""
    experts = [llama(1), gpt2(2), llama(3)][: len(case["counts"])]
    m, x_BT = mixture(experts, **{**case, "rule": rule}), ids()
    time = DAY + timedelta(data.draw(st.sampled_from(case["firsts"][1:])) - 1)  # a day too early for one of them
    absent = [u for u, may in enumerate(m.eligibility.mask([time.toordinal()])[0].tolist()) if not may]
    assert absent

    def answers() -> list[torch.Tensor]:
        said = m.generate(x_BT, time=time, max_new_tokens=3, do_sample=False)
        return [m.log_probs(x_BT, time=time), m.nll(x_BT, time=time), m.weights(x_BT, time=time), said]

    with Runs(m) as runs:
        before = answers()
    assert all((runs.of[u] == 0) == (u in absent) for u in range(len(experts)))
    for u in absent:
        for parameter in m.experts[u].parameters():
            parameter.data.fill_(torch.nan)
    assert all(torch.equal(a, b) for a, b in zip(before, answers(), strict=True))
    for u in absent:
        m.experts[u] = torch.nn.Identity()
    assert all(torch.equal(a, b) for a, b in zip(before, answers(), strict=True))


@given(settings())
def test_one_eligible_expert_answers_without_a_router(case: dict[str, Any]) -> None:
    """Bit by bit what the router's weights of 1 and 0 would give, with and without a cache."""
    case["rule"] = "strict" if case["rule"] == "all" else case["rule"]
    m, x_BT = mixture(some(case["counts"]), **case), ids()
    time = "2013-01-01"  # only the fallback may answer
    asked: list[int] = []
    handle = m.router.register_forward_pre_hook(lambda *_: asked.append(1))
    weighed = m(x_BT, time=time).logits.detach()
    assert asked
    asked.clear()
    with torch.no_grad():
        assert torch.equal(m(x_BT, time=time).logits, weighed)
        cache = m(x_BT[:, :3], time=time, use_cache=True).past_key_values
        rest = m(x_BT[:, 3:], time=time, past_key_values=cache).logits
    handle.remove()
    assert not asked
    assert (rest - weighed[:, 3:]).abs().max() <= 1e-5


@given(settings(), st.integers(0, 1))
def test_4_masked_in_one_row_of_a_batch(case: dict[str, Any], row: int) -> None:
    """A row whose date rules an expert out is as if that expert were not there, whatever the other row may use."""
    experts = [llama(1), gpt2(2), llama(3)][: len(case["counts"])]
    case["rule"] = "strict" if case["rule"] == "all" else case["rule"]
    m, x_BT = mixture(experts, **case), ids()
    time = ["2013-01-01", "2019-01-01"] if row == 0 else ["2019-01-01", "2013-01-01"]  # only the fallback; all
    before = [m.log_probs(x_BT, time=time)[row], m.nll(x_BT, time=time)[row], m.weights(x_BT, time=time)[row]]
    for u in range(1, len(experts)):
        for parameter in m.experts[u].parameters():
            parameter.data.fill_(torch.nan)
    after = [m.log_probs(x_BT, time=time)[row], m.nll(x_BT, time=time)[row], m.weights(x_BT, time=time)[row]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@given(settings(), times, st.data())
def test_5_causal(case: dict[str, Any], time: str | None, data: st.DataObject) -> None:
    m, x_BT = mixture(some(case["counts"]), **case), ids()
    t = data.draw(st.integers(1, x_BT.shape[1] - 1))
    y_BT = x_BT.clone()
    y_BT[:, t] = (y_BT[:, t] + data.draw(st.integers(1, V - 1))) % V
    for ask in (m.log_probs, m.weights):
        assert torch.equal(ask(x_BT, time=time)[:, :t], ask(y_BT, time=time)[:, :t])
    assert torch.equal(m.nll(x_BT, time=time)[:, : t - 1], m.nll(y_BT, time=time)[:, : t - 1])


@pytest.mark.parametrize("rule", ["strict", "inclusive"])
def test_no_eligible_expert_is_an_error_that_names_the_first_date(rule: str) -> None:
    m = mixture(some([1, 1]), recipe=Linear(kind="linear"), counts=[1, 1], rule=rule, firsts=[10, 20])
    with pytest.raises(RequestError, match="2014-12-31") as error:
        m.nll(ids(), time="2014-12-31")
    assert "2015-01-11" in str(error.value)


@given(settings())
def test_6_declared_trainable_moves_and_nothing_else(case: dict[str, Any]) -> None:
    """Every router parameter has a gradient through the mixture's loss, and the experts' weights are read only."""
    dense = case["recipe"].model_copy(update={"top_k": None, "top_p": None, "temperature": 1.0})
    m, x_BT = mixture(some([1, 1]), **{**case, "counts": [1, 2], "firsts": [0, 0], "recipe": dense}), ids(4, 12)
    if not list(m.router.parameters()):
        return
    for expert in m.experts:
        expert.requires_grad_(False)
    before = copy.deepcopy(m.state_dict())
    m(x_BT, labels=x_BT).loss.backward()
    named = dict(m.router.named_parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in named.values())
    assert all(p.grad.abs().sum() > 0 for p in named.values() if p.grad is not None)
    torch.optim.Adam(named.values(), lr=0.1, eps=1e-30).step()
    assert {k for k, v in m.state_dict().items() if not torch.equal(v, before[k])} == {f"router.{k}" for k in named}


def test_the_check_of_absence_can_fail() -> None:
    """With no mask, spoiling an expert is noticed."""
    m, x_BT = mixture([llama(1), llama(3)], recipe=Posterior(), counts=[1, 1]), ids()
    before = m.log_probs(x_BT)
    next(m.experts[1].parameters()).data.fill_(torch.nan)
    assert not torch.equal(before, m.log_probs(x_BT))
