"""What must hold of mixtures inside the layers, for every kind of base."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks.in_memory import merged
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.mixtures.layers.cases import KINDS, base, expert, ids, logp, mixture
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

import coterie
from coterie.errors import RequestError
from coterie.mixtures.layers.gated_block import Block, feed_forward
from coterie.mixtures.layers.layers_mixture import LayersMixture


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def slow(model: LayersMixture, ids_BT: torch.Tensor) -> torch.Tensor:
    """The mixture by its definition: every slot runs, and its output is weighted."""

    def block(self: Block, x: torch.Tensor) -> torch.Tensor:
        p_NS = torch.nn.functional.linear(x, self.gate.weight).float().softmax(-1)
        out = torch.zeros_like(x)
        for at in [(b, t) for b in range(x.shape[0]) for t in range(x.shape[1])]:
            kept = p_NS[at].topk(self.gate.top_k or len(self.seats)).indices.tolist()
            for s in kept:
                out[at] += p_NS[at][s] / p_NS[at][kept].sum() * self.experts[self.seats[s]](x[at][None, None])[0, 0]
        return out

    fast = Block.forward
    Block.forward = block
    try:
        return logp(model, ids_BT)
    finally:
        Block.forward = fast


@pytest.mark.parametrize("top_k", [None, 1, 3])
def test_it_is_its_definition(kind: str, top_k: int | None) -> None:
    model, _ = mixture(kind, top_k=top_k)
    assert (model.log_probs(ids(1, 6)) - slow(model, ids(1, 6))).abs().max() < 1e-5


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(KINDS), st.booleans())
@settings(max_examples=12)
def test_copies_of_one_expert_are_that_expert(slots: int, top_k: int, kind: str, apart: bool) -> None:
    """Whether the copies are one expert in many slots or many experts that happen to be equal."""
    start = base(kind)
    one = expert(start, 1)
    if apart:
        slots = min(slots, 4)
        model = merged(start, {f"e{i}": one for i in range(slots)}, top_k=top_k)
    else:
        model = merged(start, {"e": one}, ["e"] * slots, top_k=top_k)
    for gate in model.router:
        torch.nn.init.normal_(gate.weight)
    assert (model.log_probs(ids()) - logp(one, ids())).abs().max() < 1e-5


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_one_hot_is_that_expert(kind: str, top_k: int | None) -> None:
    model, experts = mixture(kind, top_k=top_k)
    for slot, entry in enumerate(model.slots):
        with model.only(entry["expert"]):
            assert (model.log_probs(ids()) - logp(experts[entry["expert"]], ids())).abs().max() < 1e-5
        for gate in model.router:
            gate.forward = lambda x, s=slot: hot(x, s, 4)
        assert (model.log_probs(ids()) - logp(experts[entry["expert"]], ids())).abs().max() < 1e-5


def hot(x: torch.Tensor, slot: int, slots: int):
    from coterie.routing.gates import Gated

    weight_NS = torch.nn.functional.one_hot(torch.tensor(slot), slots).float().expand(*x.shape[:-1], slots)
    return Gated(weight_NS, weight_NS)


def test_it_is_causal(kind: str) -> None:
    model, _ = mixture(kind, top_k=2)
    one = ids(1)
    two = one.clone()
    two[0, 7] = (two[0, 7] + 1) % 50 + 3
    for ask in (model.log_probs, model.weights):  # to rounding: how many tokens an expert reads at once moves last bits
        assert (ask(one)[:, :7] - ask(two)[:, :7]).abs().max() < 1e-5
        assert (ask(one)[:, 7] - ask(two)[:, 7]).abs().max() > 1e-3


def test_mass_nll_and_weights_agree(kind: str) -> None:
    model, _ = mixture(kind, top_k=2)
    logp_BTV = model.log_probs(ids())
    assert (logp_BTV.exp().sum(-1) - 1).abs().max() < 1e-5
    assert (model.nll(ids()) + logp_BTV[:, :-1].gather(-1, ids()[:, 1:, None])[..., 0]).abs().max() < 1e-5
    weight_BTS = model.weights(ids())
    assert weight_BTS.shape == (2, 12, 4)
    assert torch.allclose(weight_BTS.sum(-1), torch.ones(2, 12))


def test_padding_and_packing_change_nothing(kind: str) -> None:
    model, _ = mixture(kind, top_k=2)
    long, short = ids(1, 12, 1), ids(1, 7, 2)
    alone = [model.nll(long), model.nll(short)]
    padded = torch.cat([long, torch.cat([torch.zeros(1, 5, dtype=torch.long), short], 1)])
    mask = (padded > 0).long()
    assert torch.allclose(model.nll(padded, attention_mask=mask)[1:, 5:], alone[1], atol=1e-5)
    position = torch.cat([torch.arange(12), torch.arange(7)])[None]
    packed = model.nll(torch.cat([long, short], 1), position_ids=position)
    assert torch.allclose(packed[:, :11], alone[0], atol=1e-5)
    assert torch.allclose(packed[:, 12:], alone[1], atol=1e-5)
    assert packed[0, 11] == 0


def test_a_cache_changes_nothing(kind: str) -> None:
    model, _ = mixture(kind, top_k=2)
    step = model(ids()[:, :5], use_cache=True)
    rest = model(ids()[:, 5:], past_key_values=step.past_key_values, use_cache=True)
    whole = torch.cat([step.logits, rest.logits], 1).log_softmax(-1)
    assert (whole - model.log_probs(ids())).abs().max() < 1e-5
    cached, plain = (
        model.generate(ids(), max_new_tokens=5, do_sample=False, use_cache=c, pad_token_id=0) for c in (True, False)
    )
    assert torch.equal(cached, plain)


def test_saved_and_loaded_it_is_the_same(kind: str, tmp_path: Path) -> None:
    model, _ = mixture(kind, top_k=2)
    model.save_pretrained(tmp_path)
    for opened in (coterie.load(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)):
        assert isinstance(opened, LayersMixture)
        assert (opened.log_probs(ids()) - model.log_probs(ids())).abs().max() < 5e-6  # where a tensor lies moves last bits
        assert opened.slots == model.slots


def test_what_is_missing_is_an_error(tmp_path: Path) -> None:
    model, _ = mixture("llama")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["experts"].append({"name": "more", "digest": None})
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match="missing"):
        coterie.load(tmp_path)


def test_sampling_with_a_seed_is_repeatable_and_leaves_the_generator_alone() -> None:
    model, _ = mixture("llama")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two = (model.generate(ids(), seed=3, max_new_tokens=6, do_sample=True, pad_token_id=0) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(before, torch.get_rng_state())


def test_a_base_without_a_known_block_or_with_experts_is_refused() -> None:
    with pytest.raises(RequestError, match="no feed-forward block"):
        feed_forward(torch.nn.Linear(2, 2))
    model, _ = mixture("llama")
    with pytest.raises(RequestError, match="already"):
        feed_forward(model.model)


# slots are free ---------------------------------------------------------------------------------------------------------


def flops(model: LayersMixture) -> int:
    model.log_probs(ids())  # the first call also finds out whether packing needs a mask
    with FlopCounterMode(display=False) as counter:
        model.log_probs(ids(2, 32))
    return counter.get_total_flops()


def expert_flops(model: LayersMixture) -> int:
    """Of the feed-forward experts alone, counted in rows that they read."""
    rows = 0
    model.log_probs(ids())

    def count(module: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        nonlocal rows
        rows += inputs[0].numel() // inputs[0].shape[-1]

    handles = [e.register_forward_hook(count) for block in model.blocks for e in block.experts]
    model.log_probs(ids(2, 32))
    for handle in handles:
        handle.remove()
    return rows


def test_32_slots_of_one_expert_cost_what_the_expert_costs(tmp_path: Path) -> None:
    start = base("llama")
    model = merged(start, {"e": start}, ["e"] * 32, top_k=4)
    with FlopCounterMode(display=False) as counter:
        logp(start, ids(2, 32))
    assert flops(model) == flops(merged(start, {"e": start}, ["e"])) <= 1.01 * counter.get_total_flops()
    assert sum(p.numel() for p in model.parameters()) == start.num_parameters() + 32 * 32 * 2
    model.save_pretrained(tmp_path / "many")
    start.save_pretrained(tmp_path / "one")
    size = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("many", "one")]
    assert size[0] - size[1] < 32 * 32 * 2 * 4 + 2000


def test_32_slots_on_4_experts_run_a_third_of_what_32_copies_run() -> None:
    """Equal slots have equal rows in the gate, as every closed form makes them."""
    start = base("llama")
    experts = {f"e{u}": expert(start, u) for u in range(4)}
    names = list(experts) * 8
    rows = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(0))
    gates = [rows[layer][torch.arange(32) % 4] for layer in range(2)]
    few = merged(start, experts, names, gates, top_k=4)
    many = merged(start, {f"c{i}": experts[n] for i, n in enumerate(names)}, gates=gates, top_k=4)
    assert (few.log_probs(ids(2, 32)) - many.log_probs(ids(2, 32))).abs().max() < 1e-5
    assert expert_flops(many) == 4 * 2 * 2 * 32
    assert expert_flops(few) <= 0.35 * expert_flops(many)


def test_unused_experts_do_not_run() -> None:
    model, _ = mixture("llama", (0, 1, 2), top_k=1)
    assert expert_flops(model) == 2 * 2 * 32
