"""Stacked updates against one expert after the other, in fp32 at the size of one linear."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.mixtures.adapters.count import flops
from torch import nn
from transformers.pytorch_utils import Conv1D

from coterie.models.stack import Inlet, Stacked
from coterie.models.stack_blocks import Block, Factors, Weights


@st.composite
def cases(draw: st.DrawFn) -> dict:
    experts = draw(st.integers(1, 5))
    return {
        "linears": draw(st.integers(1, 3)),
        "ranks": draw(st.lists(st.integers(0, 4), min_size=experts, max_size=experts)),
        "alphas": draw(st.lists(st.sampled_from([1.0, 2.0, 8.0]), min_size=experts, max_size=experts)),
        "missing": draw(st.booleans()),
        "moving": draw(st.lists(st.booleans(), min_size=experts, max_size=experts)),
        "gate_moves": draw(st.booleans()),
        "chosen": draw(st.sampled_from([None, 1])),
        "conv": draw(st.booleans()),
        "seed": draw(st.integers(0, 999)),
    }


def build(case: dict) -> tuple[list[Stacked], list[nn.Module], list[dict[str, Factors]], torch.Tensor, Inlet]:
    torch.manual_seed(case["seed"])
    names, width, outputs = [f"l{i}" for i in range(case["linears"])], 7, [5, 3, 6]
    factors: list[dict[str, Factors]] = []
    for u, (r, alpha) in enumerate(zip(case["ranks"], case["alphas"], strict=True)):
        named = names[:-1] if case["missing"] and u == 0 else names
        factors.append(
            {n: Factors(torch.randn(r, width), torch.randn(outputs[i], r), alpha / r) for i, n in enumerate(named) if r}
        )
    gate = torch.randn(len(factors), width)

    def weigh(logits: torch.Tensor | None, shape: torch.Size) -> Weights:
        assert logits is not None
        p = logits.softmax(-1)
        if case["chosen"]:
            p = torch.zeros_like(p).scatter(-1, p.argmax(-1, keepdim=True), 1.0)
        return Weights(p.view(-1, p.shape[-1]))

    linears = [Conv1D(o, width) if case["conv"] else nn.Linear(width, o) for o in outputs[: len(names)]]
    inlet = Inlet(names, outputs[: len(names)], torch.zeros(1, width), weigh)
    parts = [(trains, [u for u, m in enumerate(case["moving"]) if m == trains]) for trains in (True, False)]
    inlet.compose([(p, [factors[u] for u in p], t) for t, p in parts if p], gate, case["gate_moves"], case["chosen"])
    return (
        [Stacked(n, linear, inlet, i == 0) for i, (n, linear) in enumerate(zip(names, linears, strict=True))],
        linears,
        factors,
        gate,
        inlet,
    )


def obvious(
    case: dict, linears: list[nn.Module], factors: list[dict[str, Factors]], gate: torch.Tensor, x: torch.Tensor
) -> list[torch.Tensor]:
    p = (x @ gate.T).softmax(-1)
    if case["chosen"]:
        p = torch.zeros_like(p).scatter(-1, p.argmax(-1, keepdim=True), 1.0)
    out = []
    for i, linear in enumerate(linears):
        y = linear(x)
        for u, mine in enumerate(factors):
            if f"l{i}" in mine:
                A, B, scale = mine[f"l{i}"]
                y = y + p[..., u, None] * scale * (x @ A.T @ B.T)
        out.append(y)
    return out


@given(cases())
@settings(max_examples=60, deadline=None)
def test_one_pass_is_the_pass_an_expert(case: dict) -> None:
    stacked, linears, factors, gate, _ = build(case)
    x = torch.randn(2, 4, 7)
    expected = obvious(case, linears, factors, gate, x)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            for one, two in zip([s(x) for s in stacked], expected, strict=True):
                torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


@given(cases())
@settings(max_examples=25, deadline=None)
def test_gradients_are_those_of_the_pass_an_expert_and_of_nothing_else(case: dict) -> None:
    stacked, linears, factors, gate, inlet = build(case)
    for linear in linears:
        linear.requires_grad_(False)
    x = torch.randn(3, 4, 7)
    out = torch.cat([s(x) for s in stacked], -1).square().sum()
    if not out.requires_grad:
        assert not any(moves and mine for moves, mine in zip(case["moving"], factors, strict=True))
        return
    out.backward()
    leaves = [
        {n: Factors(f.A_RI.clone().requires_grad_(), f.B_OR.clone().requires_grad_(), f.scale) for n, f in mine.items()}
        for mine in factors
    ]
    rows = gate.clone().requires_grad_()
    torch.cat(obvious(case, linears, leaves, rows, x), -1).square().sum().backward()
    for block in inlet.blocks:
        assert all(p.requires_grad == case["moving"][block.members[0]] for p in block.parameters() if p.numel())
        if not block.down.requires_grad:
            assert all(p.grad is None for p in block.parameters())
            continue
        grads = Block.of.__get__(_grads_of(block))
        for member in block.members:
            for name, found in grads(member).items():
                torch.testing.assert_close(found.A_RI, leaves[member][name].A_RI.grad, atol=1e-3, rtol=1e-4)
                torch.testing.assert_close(found.B_OR, leaves[member][name].B_OR.grad, atol=1e-3, rtol=1e-4)
    if case["gate_moves"] and not case["chosen"]:
        found = (
            inlet.blocks[inlet.fused].down.grad[inlet.blocks[inlet.fused].total :]
            if inlet.fused is not None
            else inlet.gate.grad
        )
        torch.testing.assert_close(found, rows.grad, atol=1e-3, rtol=1e-4)


def _grads_of(block: Block) -> Block:
    """A block whose tensors are the gradients."""
    twin = Block.__new__(Block)
    twin.__dict__.update({k: v for k, v in block.__dict__.items() if not k.startswith("_")})
    twin.__dict__["down"] = block.down.grad
    twin.__dict__["ups"] = [up.grad if up.grad is not None else torch.zeros_like(up) for up in block.ups]
    return twin


@pytest.mark.parametrize("r", [3, 4])
def test_many_experts_of_which_few_are_chosen_are_sorted_not_multiplied(r: int) -> None:
    """FLOPs follow the experts chosen, not those that are there; also at ranks that grouped products do not take."""
    torch.manual_seed(0)
    width = 64
    K, M = 32, 48
    factors = [{"l": Factors(torch.randn(r, width), torch.randn(width, r), 2.0 if u % 2 else 1.0)} for u in range(K)]
    gate, linear, x = torch.randn(K, width), nn.Linear(width, width), torch.randn(M, width)

    def weigh(logits: torch.Tensor | None, shape: torch.Size) -> Weights:
        assert logits is not None
        value, index = logits.softmax(-1).topk(2)
        return Weights(torch.zeros_like(logits).scatter(-1, index, value))

    inlet = Inlet(["l"], [width], torch.zeros(1, width), weigh)
    inlet.compose([(range(K), factors, False)], gate, False, 2)
    stacked = Stacked("l", linear, inlet, True)
    with torch.no_grad():
        found, counted = stacked(x), flops(lambda: stacked(x))
    w = weigh(x @ gate.T, x.shape).dense_MU
    expected = linear(x) + sum(
        w[:, u, None] * f["l"].scale * (x @ f["l"].A_RI.T @ f["l"].B_OR.T) for u, f in enumerate(factors)
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    base, gates, two = 2 * M * width**2, 2 * M * width * K, 2 * 2 * M * r * 2 * width
    assert counted == base + gates + two


@pytest.mark.parametrize("r", [8, 3])
def test_sorted_tokens_under_autocast(r: int) -> None:
    """bf16 activations over fp32 weights, as in training; grouped products take one type only."""
    torch.manual_seed(0)
    width, K, M = 64, 16, 24
    factors = [{"l": Factors(torch.randn(r, width), torch.randn(width, r) / width, 1.0)} for _ in range(K)]
    w_MU = torch.eye(K).repeat(2, 1)[:M]
    inlet = Inlet(["l"], [width], torch.zeros(1, width), lambda logits, shape: Weights(w_MU))
    inlet.compose([(range(K), factors, False)], None, False, 1)
    stacked, x = Stacked("l", nn.Linear(width, width), inlet, True), torch.randn(M, width)
    with torch.no_grad():
        exact = stacked(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = stacked(x.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, atol=0.05, rtol=0.05)
