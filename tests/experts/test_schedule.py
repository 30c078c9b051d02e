"""The learning rate's trace, and the optimizer's groups."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models.architectures import make

from coterie.experts.loop import marks
from coterie.experts.train_settings import Train
from coterie.experts.training import factor, optimizer

SHAPES = ("cosine", "linear", "constant", "wsd")


def test_wsd_at_its_corners() -> None:
    """0, end of warm-up, end of the stable part, the last step (and the end, one step past it)."""
    train = Train(schedule="wsd", warmup=0.05, decay=0.1, floor=0.2)
    assert factor(0, 200, train) == pytest.approx(1 / 11)
    assert factor(9, 200, train) == pytest.approx(10 / 11)
    assert factor(10, 200, train) == 1.0
    assert factor(179, 200, train) == 1.0
    assert factor(180, 200, train) == 1.0
    assert factor(190, 200, train) == pytest.approx(0.6)
    assert factor(199, 200, train) == pytest.approx(1 - 0.8 * 19 / 20)
    assert factor(200, 200, train) == pytest.approx(0.2)


def test_cosine_linear_and_constant_at_their_corners() -> None:
    cosine, linear, constant = (Train(schedule=s, warmup=0.1, floor=0.1) for s in ("cosine", "linear", "constant"))
    for train in (cosine, linear, constant):
        assert factor(0, 100, train) == pytest.approx(1 / 11)
        assert factor(10, 100, train) == 1.0
    assert factor(55, 100, cosine) == pytest.approx(0.55)
    assert factor(99, 100, cosine) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 89 / 90)) / 2)
    assert factor(100, 100, cosine) == pytest.approx(0.1)
    assert factor(55, 100, linear) == pytest.approx(0.5)
    assert factor(99, 100, linear) == pytest.approx(1 / 90)
    assert factor(99, 100, constant) == 1.0


@given(
    shape=st.sampled_from(SHAPES),
    steps=st.integers(1, 300),
    warmup=st.floats(0, 0.5),
    decay=st.floats(0, 0.5),
    floor=st.floats(0, 1),
)
def test_no_step_is_wasted_and_none_is_above_the_peak(
    shape: str, steps: int, warmup: float, decay: float, floor: float
) -> None:
    train = Train(schedule=shape, warmup=warmup, decay=decay, floor=floor)
    trace = [factor(step, steps, train) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in trace)
    peak = trace.index(max(trace))
    assert trace[:peak] == sorted(trace[:peak])
    assert trace[peak:] == sorted(trace[peak:], reverse=True)


def test_the_scheduler_follows_the_trace() -> None:
    train = Train(schedule="wsd", learning_rate=0.02, decay=0.5)
    model = make("llama")
    adamw = optimizer(model, train)
    schedule = torch.optim.lr_scheduler.LambdaLR(adamw, partial(factor, steps=20, train=train))
    for step in range(20):
        assert adamw.param_groups[0]["lr"] == pytest.approx(0.02 * factor(step, 20, train))
        adamw.step()
        schedule.step()


def test_only_matrices_decay_and_only_what_moves_is_optimised() -> None:
    model = make("gpt2")
    model.transformer.wpe.weight.requires_grad_(False)
    train = Train(weight_decay=0.3, beta1=0.8, beta2=0.9)
    adamw = optimizer(model, train)
    decayed = {id(p) for g in adamw.param_groups if g["weight_decay"] for p in g["params"]}
    plain = {id(p) for g in adamw.param_groups if not g["weight_decay"] for p in g["params"]}
    for name, p in model.named_parameters():
        if name == "transformer.wpe.weight":
            assert id(p) not in decayed | plain
        elif p.ndim == 2:
            assert id(p) in decayed
        else:
            assert "ln" in name or "bias" in name
            assert id(p) in plain
    assert all(g["fused"] and g["betas"] == (0.8, 0.9) and g["weight_decay"] in (0.3, 0.0) for g in adamw.param_groups)
    assert isinstance(adamw, torch.optim.AdamW)


@given(counts=st.lists(st.integers(1, 50), min_size=1, max_size=40), every=st.integers(1, 120))
def test_marks_are_the_first_steps_to_reach_each_multiple(counts: list[int], every: int) -> None:
    import numpy as np

    expected, seen = set(), 0
    for step, count in enumerate(counts, 1):
        if (seen + count) // every > seen // every:
            expected.add(step)
        seen += count
    assert marks(np.cumsum(counts), every) == expected
