"""Training: all that should move moves, nothing else does, however the step is divided and wherever it was cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.mixtures.adapters.cases import adapter, base, close, ids, mixture
from torch import Tensor

from coterie.errors import RequestError, WorkError
from coterie.mixtures.adapters.adapters_mixture import AdaptersMixture
from coterie.mixtures.adapters.joint_training import Loss, require_gradients
from coterie.models import lora_files as files

ROUTERS: list[dict[str, Any]] = [
    {"top_k": 1},
    {"top_k": 2},
    {"top_p": 0.6},
    {},
    {"scope": "linear", "top_k": 1},
    {"scope": "model", "reads": "prefix", "top_k": 1},
]


def batch(B: int = 4, T: int = 12, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    tokens = ids(B, T)
    labels = tokens.clone()
    labels[:, 0] = -100
    labels[0, :5] = -100
    return {"input_ids": tokens, "position_ids": torch.arange(T).expand(B, T), "labels": labels}


def steps(made: AdaptersMixture, count: int = 3, **by: float) -> torch.optim.Optimizer:
    """A few steps of AdamW on random tokens."""
    loss = Loss({**by})
    optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=1e-2)
    for i in range(count):
        data = batch(seed=i)
        loss(made, data, (data["labels"] != -100).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("router", ROUTERS, ids=str)
def test_after_the_first_steps_every_expert_and_gate_has_moved_and_the_base_has_not(router: dict[str, Any]) -> None:
    """From fresh adapters, top-1 included: the gate learns though one weight is 1, and no expert is left out."""
    model = base()
    places = files.linears(model)
    made = mixture(ranks=(2, 2, 2), seed=1, **router)
    for u in range(3):
        made.config.experts[u]["maturity"] = "training"
    fresh = [files.fresh(places, "all-linear", 2, 4, u) for u in range(3)]
    made.layout._adapters, made.layout._running = dict(enumerate(fresh)), []
    made.trainable(None, router=True)
    before = {n: {k: (f.A_RI.clone(), f.B_OR.clone()) for k, f in a.items()} for n, a in made.adapters().items()}
    gates, frozen = made.gates(), {n: p.clone() for n, p in made.named_parameters() if not p.requires_grad}
    optimizer = steps(made, 2)
    made.router.collaborate(False)
    for group in optimizer.param_groups:
        assert group["params"]
    require_gradients(made, optimizer, "test")
    for name, mine in made.adapters().items():
        for linear, factors in mine.items():
            assert not torch.equal(factors.A_RI, before[name][linear][0]), (name, linear)
            assert not torch.equal(factors.B_OR, before[name][linear][1]), (name, linear)
    for name, rows in made.gates().items():
        assert (rows != gates[name]).any(1).all(), name
    for name, parameter in made.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, frozen[name]), name


@pytest.mark.parametrize("router", [r for r in ROUTERS if "top_k" in r], ids=str)
def test_a_sparse_gate_hears_of_every_expert(router: dict[str, Any]) -> None:
    """Straight-through: with mature experts and top-1 each gate's rows all have a gradient."""
    made = mixture(ranks=(2, 2, 2), seed=1, **router).trainable(router=True)
    data = batch()
    Loss({})(made, data, torch.tensor(40)).backward()
    for name, rows in _gate_grads(made).items():
        assert (rows.abs().sum(1) > 0).all(), name


def _gate_grads(made: AdaptersMixture) -> dict[str, Tensor]:
    found = {}
    for gate, i in made.layout.hosted.items():
        inlet = made.layout.inlets[i]
        if inlet.fused is not None:
            block: Any = inlet.blocks[inlet.fused]
            found[gate] = block.down.grad[block.total :]
        else:
            assert inlet.gate is not None
            found[gate] = inlet.gate.grad
    if made.router.rows_UH is not None:
        found["model"] = made.router.rows_UH.grad
    return found


def test_isolated_training_moves_one_expert_alone_bit_by_bit() -> None:
    made = mixture(ranks=(2, 3, 4), seed=2).trainable(["e1"])
    before = {n: {k: (f.A_RI.clone(), f.B_OR.clone()) for k, f in a.items()} for n, a in made.adapters().items()}
    gates = made.gates()
    held = sum(p.numel() for p in made.parameters() if p.requires_grad)
    assert held == made.counts()["experts"]["e1"] == made.counts()["trained"]
    optimizer = steps(made)
    assert sum(s["exp_avg"].numel() for s in optimizer.state.values()) == held  # state for what trains alone
    for name, mine in made.adapters().items():
        same = [torch.equal(f.A_RI, before[name][k][0]) and torch.equal(f.B_OR, before[name][k][1]) for k, f in mine.items()]
        assert not any(same) if name == "e1" else all(same)
    assert all(torch.equal(rows, gates[n]) for n, rows in made.gates().items())


def test_gates_alone_train_with_every_expert_frozen() -> None:
    made = mixture(ranks=(2, 3, 4), seed=2, top_k=1).trainable(router=True)
    before = {n: {k: (f.A_RI.clone(), f.B_OR.clone()) for k, f in a.items()} for n, a in made.adapters().items()}
    assert made.counts()["trained"] == made.counts()["router"]
    gates = made.gates()
    steps(made)
    for name, mine in made.adapters().items():
        assert all(
            torch.equal(f.A_RI, before[name][k][0]) and torch.equal(f.B_OR, before[name][k][1]) for k, f in mine.items()
        )
    assert all(not torch.equal(rows, gates[n]) for n, rows in made.gates().items())


def test_counts_are_the_analytic_ones() -> None:
    ranks, model = (2, 3, 5), base("qwen3")
    made = mixture("qwen3", ranks)
    places = files.linears(model)
    for name, r in zip(("e0", "e1", "e2"), ranks, strict=True):
        assert made.counts()["experts"][name] == r * sum(i + o for i, o in places.values())
    hidden, layers = model.config.hidden_size, model.config.num_hidden_layers
    assert made.counts()["router"] == layers * hidden * 3
    assert made.counts()["base"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("by", [{}, {"z": 0.1}, {"entropy": 0.1}])
def test_accumulated_batches_add_up_to_one_large_batch(by: dict[str, float]) -> None:
    data = batch(B=6)
    items = (data["labels"] != -100).sum()
    grads = []
    for parts in (1, 3):
        made = mixture(ranks=(2, 3), seed=3).double().trainable(None, router=True)
        made.double()
        loss = Loss({**by})
        for rows in torch.arange(6).chunk(parts):
            loss(made, {k: v[rows] for k, v in data.items()}, items).backward()
        grads.append({n: p.grad for n, p in made.named_parameters() if p.requires_grad})
    for name, grad in grads[0].items():
        assert close(grads[1][name], grad, 1e-6 if by else 1e-9), name


def test_balance_is_of_each_gate_and_leaves_padding_and_prompts_out() -> None:
    made = mixture(ranks=(2, 3), seed=3).trainable(router=True)
    data = batch()
    items = (data["labels"] != -100).sum()
    values = []
    for change in (0, 1):
        changed = {k: v.clone() for k, v in data.items()}
        changed["labels"][:, -3:] = -100  # as if it were padding
        if change:
            changed["input_ids"][:, -2:] = 5
        with torch.no_grad():
            plain = Loss({})(made, changed, items)
            values.append(Loss({"balance": 1.0})(made, changed, items) - plain)
    assert torch.allclose(values[0], values[1], atol=1e-6)
    assert values[0] > 0


def test_a_part_without_a_gradient_is_said() -> None:
    made = mixture(ranks=(2, 3), seed=3).trainable(None, router=True)
    optimizer = steps(made)
    for inlet in made.layout.inlets:
        for block in inlet.blocks:
            for up, span in zip(block.ups, block.spans(1), strict=True):
                optimizer.state[up]["exp_avg"][:, span] = 0
    with pytest.raises(WorkError, match="expert 'e1' has had no gradient"):
        require_gradients(made, optimizer, "test")


def test_a_new_expert_is_not_trained_unseen() -> None:
    made = mixture(ranks=(2, 3))
    made.add_expert("later", adapter(base(), 2))
    with pytest.raises(RequestError, match="is new and is not run"):
        made.trainable(["later"])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_changes_no_gradient(dropout: float) -> None:
    grads = []
    for checkpointing in (False, True):
        made = mixture(ranks=(2, 3), seed=3)
        made = AdaptersMixture(made.config, base(seed=3), list(made.adapters().values()), made.gates(), dropout=dropout)
        made.trainable(None, router=True).train()
        if checkpointing:
            made.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        data = batch()
        torch.manual_seed(7)
        Loss({})(made, data, torch.tensor(40)).backward()
        grads.append({n: p.grad for n, p in made.named_parameters() if p.requires_grad})
    for name, grad in grads[0].items():
        assert close(grads[1][name], grad, 1e-6), name


def test_memory_of_one_expert_more_is_its_weights_gradients_and_states(tmp_path: Path) -> None:
    """Bytes of tensors after a step: expert N+1 adds 16 bytes a parameter (fp32) and its gate's row, within 5 %."""
    held = []
    for experts in (3, 4):
        made = mixture(ranks=(8,) * experts, seed=3).trainable(None, router=True)
        optimizer = torch.optim.AdamW([p for p in made.parameters() if p.requires_grad], lr=1e-2)
        data = batch()
        Loss({})(made, data, torch.tensor(40)).backward()
        optimizer.step()
        tensors = {id(t): t for p in made.parameters() for t in (p, p.grad) if t is not None}
        tensors |= {id(t): t for s in optimizer.state.values() for t in s.values() if t.ndim}
        stray = [t for name, t in made.named_buffers() if t.dtype.is_floating_point]
        held.append(sum(t.numel() * t.element_size() for t in [*tensors.values(), *stray]))
        per = made.counts()["experts"]["e0"] + made.counts()["router"] / experts
    assert held[1] - held[0] == pytest.approx(16 * per, rel=0.05)
