"""What many experts cost against PEFT with one adapter of the same rank and targets: operators and FLOPs, counted."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.mixtures.adapters.cases import adapter, base, config
from tests.mixtures.adapters.count import flops, operators

from coterie.mixtures.adapters.adapters_mixture import AdaptersMixture
from coterie.models import lora_files as files

R, T = 4, 24


def ours(experts: int, architecture: str = "llama", **router: Any) -> AdaptersMixture:
    model = base(architecture)
    made = AdaptersMixture(config(experts, **router), model, [adapter(model, R, R, seed=u) for u in range(experts)])
    made.set_gates({n: torch.randn(experts, h) for n, h in made.layout.sizes.items()})
    return made


def peft(architecture: str = "llama") -> Any:
    from peft import LoraConfig, get_peft_model

    asked = LoraConfig(r=R, lora_alpha=R, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(base(architecture), asked).eval()


def ids() -> torch.Tensor:
    return torch.randint(3, 61, (2, T), generator=torch.Generator().manual_seed(0))


def step(model: Any) -> None:
    model(input_ids=ids(), labels=ids(), use_cache=False).loss.backward()


def ask(model: Any) -> None:
    with torch.no_grad():
        model(input_ids=ids(), use_cache=False)


def adapted(experts: int) -> int:
    """FLOPs of so many adapters, forward."""
    return 2 * 2 * T * experts * R * sum(i + o for i, o in files.linears(base()).values())


def gates(experts: int) -> int:
    hidden = base().config.hidden_size
    return 2 * 2 * T * experts * hidden * base().config.num_hidden_layers


@pytest.mark.parametrize(("architecture", "most"), [("llama", 1.0), ("qwen3", 1.0), ("gemma2", 1.0), ("gpt2", 1.15)])
@pytest.mark.parametrize("experts", [8, 32])
def test_a_step_takes_hardly_more_operators_than_one_adapter(architecture: str, most: float, experts: int) -> None:
    """Fewer where linears share their input. GPT-2's do not: there the gates' gradient shows, two operators a linear."""
    made = ours(experts, architecture).trainable(None, router=True)
    for model in (made, theirs := peft(architecture)):
        step(model)  # what is measured once, is not of the step
    assert operators(lambda: step(made)) <= most * operators(lambda: step(theirs))


def test_operators_do_not_grow_with_experts() -> None:
    counts = []
    for experts in (2, 8, 32):
        made = ours(experts).trainable(None, router=True)
        step(made)
        counts.append(operators(lambda made=made: step(made)))
    assert counts[0] == counts[1] == counts[2]


@pytest.mark.parametrize("experts", [1, 8, 32])
def test_dense_flops_are_those_of_the_base_the_adapters_and_the_gates_and_no_more(experts: int) -> None:
    made, plain = ours(experts), base()
    ask(made)
    assert flops(lambda: ask(made)) == flops(lambda: ask(plain)) + adapted(experts) + gates(experts)


def test_of_32_experts_top_2_costs_two_adapters_and_the_gates() -> None:
    made, plain = ours(32, top_k=2), base()
    ask(made)
    assert flops(lambda: ask(made)) == flops(lambda: ask(plain)) + adapted(2) + gates(32)


def test_at_the_widths_of_an_8b_model_that_is_within_2_percent_of_one_adapter() -> None:
    """Llama-3-8B's linears, r = 16: the formula that the test above holds the code to."""
    hidden, inner, kv, r = 4096, 14336, 1024, 16
    linears = [
        (hidden, hidden),
        (hidden, kv),
        (hidden, kv),
        (hidden, hidden),
        (hidden, inner),
        (hidden, inner),
        (inner, hidden),
    ]
    model, one = sum(i * o for i, o in linears), sum(r * (i + o) for i, o in linears)
    assert model + 2 * one <= 1.02 * (model + one)
    assert 32 * hidden <= 0.001 * model  # the gate of a layer


def test_decoding_takes_no_more_operators_than_peft() -> None:
    made, theirs = ours(8), peft()
    for model in (made, theirs):
        model.generation_config.update(pad_token_id=0, eos_token_id=None)
    how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "use_cache": True}
    found = []
    for model in (made, theirs):
        model.generate(input_ids=ids(), **how) if model is theirs else model.generate(ids(), **how)
        call = (
            (lambda m=model: m.generate(input_ids=ids(), **how))
            if model is theirs
            else (lambda m=model: m.generate(ids(), **how))
        )
        found.append(operators(call))
    assert found[0] <= 1.1 * found[1]
