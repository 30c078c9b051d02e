"""A mixture of adapters against one pass an expert, and what must hold of it whatever the gates are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.mixtures.adapters.cases import ARCHITECTURES, KINDS, Obvious, V, adapter, base, close, config, ids, mixture

from coterie.errors import RequestError
from coterie.mixtures.adapters.adapter_routers import AdapterGate
from coterie.mixtures.adapters.adapters_mixture import AdaptersMixture
from coterie.models import lora_files as files

routers = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(sorted(AdapterGate.registry)),
        "scope": st.sampled_from(["layer", "linear", "model"]),
        "reads": st.sampled_from(["token", "prefix"]),
        "temperature": st.sampled_from([0.5, 1.0, 2.0]),
    },
    optional={"top_k": st.integers(1, 3), "top_p": st.floats(0.1, 1.0)},
).map(lambda drawn: {k: v for k, v in drawn.items() if AdapterGate.named(drawn["kind"]).has_rows or not k.startswith("top")})


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    ranks = draw(st.lists(st.integers(1, 5), min_size=3, max_size=4))
    every = [None, {"q_proj", "v_proj"}, {"gate_proj", "up_proj", "down_proj"}]
    return {
        "ranks": ranks,
        "targets": [draw(st.sampled_from(every)) for _ in ranks],
        "alphas": [draw(st.sampled_from([1.0, 3.0])) for _ in ranks],
        "slots": draw(st.sampled_from([None, [*range(len(ranks)), 0, 0]])),
        "maturity": [draw(st.sampled_from(["mature", "mature", "training"])) for _ in ranks],
        "seed": draw(st.integers(0, 99)),
        **draw(routers),
    }


@given(cases())
@settings(max_examples=25, deadline=None)
def test_one_pass_is_the_pass_an_expert(case: dict[str, Any]) -> None:
    torch.manual_seed(case["seed"])
    made = mixture(**case)
    reference = Obvious("llama", case["seed"], made, list(made.adapters().values()))
    tokens = ids()
    made.double()
    made.compose()
    reference.model.double()
    reference.gates = {name: rows.double() for name, rows in made.gates().items()}
    reference.adapters = list(made.adapters().values())
    with torch.no_grad():  # fp64: the algebra, with no rounding that a random network could blow up
        assert close(made(tokens).logits, reference.logits(tokens), 1e-9)


@pytest.mark.parametrize("router", [{"top_k": 1}, {"scope": "linear"}, *KINDS])
def test_in_fp32_what_is_said_differs_by_rounding_alone(router: dict[str, Any]) -> None:
    """On a base as calm as a trained one; random networks of large weights blow rounding up."""
    torch.manual_seed(2)
    made = mixture(ranks=(2, 3, 4), seed=2, calm=True, **router)
    reference = Obvious("llama", 2, made, list(made.adapters().values()), calm=True)
    tokens = ids(4, 12)
    assert (made.log_probs(tokens) - reference.logits(tokens).log_softmax(-1)).abs().max() < 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_one_hot_is_the_expert_alone_in_peft(architecture: str, tmp_path: Any) -> None:
    """Ours, and PEFT's own on the same files: the same function, in and out."""
    from peft import PeftModel

    made = mixture(architecture, (2, 4), seed=3)
    tokens = ids()
    for name, mine in made.adapters().items():
        files.write(mine, made.layout.places, tmp_path / name)
        theirs = PeftModel.from_pretrained(base(architecture, 3), str(tmp_path / name)).eval()
        with torch.no_grad(), made.only(name):
            assert close(made(tokens).logits, theirs(input_ids=tokens, use_cache=False).logits, 1e-5)
        back = files.read(tmp_path / name, made.layout.places)
        assert back.keys() == mine.keys()
        for linear, factors in back.items():
            assert torch.equal(factors.A_RI, mine[linear].A_RI)
            assert torch.equal(factors.B_OR, mine[linear].B_OR)
            assert factors.scale == pytest.approx(mine[linear].scale)


@given(routers, st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_a_mixture_of_equal_experts_is_that_expert(router: dict[str, Any], experts: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = base(seed=seed)
    one = adapter(model, 3, seed=seed)
    router = {**router, "top_k": min(router["top_k"], experts) if router.get("top_k") else None}
    made = AdaptersMixture(config(experts, **router), model, [one] * experts)
    made.set_gates({n: torch.randn(experts, h) for n, h in made.layout.sizes.items()})
    alone = AdaptersMixture(config(1, kind="uniform"), base(seed=seed), [one])
    tokens = ids()
    assert close(made.log_probs(tokens), alone.log_probs(tokens), 1e-5)


@given(routers, st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_a_token_changes_nothing_before_it_and_mass_is_one(router: dict[str, Any], seed: int) -> None:
    torch.manual_seed(seed)
    made = mixture(ranks=(2, 3, 4), seed=seed, **router)
    tokens = ids(1, 10)
    at = int(torch.randint(1, 10, ()))
    edited = tokens.clone()
    edited[0, at] = 3 + (edited[0, at] - 2) % (V - 3)
    before, after = made.log_probs(tokens), made.log_probs(edited)
    assert close(before[:, :at], after[:, :at], 1e-6)
    assert close(made.weights(tokens)[:, :at], made.weights(edited)[:, :at], 1e-6)
    torch.testing.assert_close(before.exp().sum(-1), torch.ones(1, 10))
    torch.testing.assert_close(made.weights(tokens).sum(-1), torch.ones(1, 10))
    assert close(made.nll(tokens), -before[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0], 1e-5)


def test_slots_of_one_expert_share_its_weight() -> None:
    """Softmax over slots, summed over equal ones; disk and compute follow experts."""
    made = mixture(ranks=(2, 3), slots=[0, 1, 1, 1], seed=1)
    weights = made.weights(tokens := ids())
    assert weights.shape == (*tokens.shape, 4)
    assert torch.equal(weights[..., 1], weights[..., 3])
    assert len(made.adapters()) == 2


# maturity -----------------------------------------------------------------------------------------------------------------


def test_a_new_expert_changes_no_bit_until_it_is_raised() -> None:
    made = mixture(ranks=(2, 3), seed=4, top_k=1)
    tokens = ids()
    before = made.log_probs(tokens)
    made.add_expert("later", adapter(base(), 5, seed=9))
    assert torch.equal(made.log_probs(tokens), before)
    assert torch.equal(made.weights(tokens)[..., 2], torch.zeros(tokens.shape))
    made.mature("later", "mature")
    assert not torch.equal(made.log_probs(tokens), before)


def test_what_an_expert_holds_while_it_is_new_is_never_heard() -> None:
    """Masked is absent: even NaN."""
    one = mixture(ranks=(2, 3), seed=4)
    two = mixture(ranks=(2, 3), seed=4)
    fresh = adapter(base(), 5, seed=9)
    one.add_expert("later", fresh)
    two.add_expert("later", {n: f._replace(A_RI=f.A_RI * torch.nan) for n, f in fresh.items()})
    assert torch.equal(one.log_probs(tokens := ids()), two.log_probs(tokens))


def test_a_maturity_that_cannot_be_leaves_all_as_it_was() -> None:
    made = mixture(ranks=(2, 3), seed=4, top_k=2)
    before = made.log_probs(tokens := ids())
    with pytest.raises(RequestError, match="top_k is above"):
        made.mature("e1", "new")
    with pytest.raises(RequestError, match="no maturity is called"):
        made.mature("e1", "old")
    assert torch.equal(made.log_probs(tokens), before)


def test_all_answer_while_one_is_in_training_then_few() -> None:
    made = mixture(ranks=(2, 3, 2), seed=4, top_k=1, maturity=["mature", "training", "mature"])
    tokens = ids()
    assert (made.weights(tokens) > 0).all()
    made.mature("e1", "mature")
    with torch.no_grad(), made.traced() as trace:
        made(tokens)
        assert all(((gated.weight_NS > 0).sum(-1) == 1).all() for gated in trace().values())


# generation ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("router", [{}, {"top_k": 1}, {"reads": "prefix"}, {"scope": "model", "reads": "prefix"}])
def test_with_a_cache_and_without_the_same_is_said(router: dict[str, Any]) -> None:
    torch.manual_seed(0)
    made = mixture(ranks=(2, 3, 2), seed=6, **router)
    prompts = ids(3, 6)
    prompts[0, :2] = 0
    mask = (prompts != 0).long()
    how: dict[str, Any] = {
        "max_new_tokens": 8,
        "min_new_tokens": 8,
        "do_sample": False,
        "attention_mask": mask,
        "pad_token_id": 0,
    }
    slow = made.generate(prompts, use_cache=False, **how)
    assert torch.equal(made.generate(prompts, use_cache=True, **how), slow)
    alone = made.generate(prompts[:1, 2:], max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(alone[0, 4:], slow[0, 6:])
    many = made.generate(prompts, num_beams=3, **how)
    assert torch.equal(many, made.generate(prompts, num_beams=3, use_cache=False, **how))
    cached = made(prompts[1:, :5], use_cache=True)
    step = made(prompts[1:, 5:], past_key_values=cached.past_key_values, use_cache=True)
    assert close(step.logits[:, -1], made(prompts[1:]).logits[:, -1], 1e-5)


def test_packed_documents_and_padding_change_nothing() -> None:
    made = mixture(ranks=(2, 3), seed=6, reads="prefix")
    one, two = ids(1, 5), ids(1, 4)
    packed = made.nll(torch.cat([one, two], 1), position_ids=torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3]]))
    assert close(packed[:, :4], made.nll(one), 1e-5)
    assert close(packed[:, 5:], made.nll(two), 1e-5)
    assert packed[0, 4] == 0
    for left in (True, False):
        pad, mask = torch.zeros(1, 3, dtype=torch.long), torch.tensor([[1] * 5])
        parts, masks = ([pad, one], [pad, mask]) if left else ([one, pad], [mask, pad])
        padded = made.nll(torch.cat(parts, 1), attention_mask=torch.cat(masks, 1))
        assert close(padded[:, 3:] if left else padded[:, :4], made.nll(one), 1e-5)


# bad requests -------------------------------------------------------------------------------------------------------------


def test_top_k_above_the_experts_that_may_be_used() -> None:
    with pytest.raises(RequestError, match="top_k is above the number of eligible experts") as caught:
        mixture(ranks=(2, 2), top_k=3)
    assert caught.value.expected == "at most 2"
    with pytest.raises(RequestError, match="top_k is above"):
        mixture(ranks=(2, 2, 2), top_k=3, maturity=["mature", "mature", "new"])


def test_a_base_with_no_linear_that_an_expert_updates() -> None:
    with pytest.raises(RequestError, match="no expert updates a linear of this base"):
        AdaptersMixture(config(1), base(), [{}])
    with pytest.raises(RequestError, match="finds none of its layers"):
        files.fresh(files.linears(base()), ("c_attn",), 4, 8.0, 0)


def test_nothing_would_train() -> None:
    made = mixture(ranks=(2, 3), kind="uniform")
    for asked in ({}, {"router": True}):
        with pytest.raises(RequestError, match="nothing would train"):
            made.trainable(**asked)
    with pytest.raises(RequestError, match="no expert is called"):
        made.trainable(["nobody"])
