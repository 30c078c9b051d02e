"""What the Trainer would do without a word: go on after divergence, take settings from the environment, keep defaults that
change a run. The other traps are where their function is tested: accumulation, packing, labels and shift, adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.experts.making import base, blocks, settings

from coterie.errors import RequestError, WorkError
from coterie.experts import loop
from coterie.experts.expert_actions import train_expert
from coterie.experts.training_request import Request
from coterie.store import Store

torch.set_num_threads(1)

# Divergence (trap 1)


def published(store: Store) -> list[Path]:
    return [p for kind in ("experts", "temp") for p in (store.root / kind).glob("*")]


def test_a_diverged_run_stops_and_is_never_published(store: Store) -> None:
    with pytest.raises(WorkError, match="diverged") as caught:
        train_expert(
            Request(
                store,
                start=base(store),
                blocks=[blocks(store)],
                train=settings(learning_rate=1e30, clip=0.0, schedule="constant", save_every=30),
                seed=1,
            )
        )
    assert caught.value.where.startswith("step ")
    assert "learning_rate" in caught.value.do
    assert not published(store)


@pytest.mark.parametrize(("what", "message"), [("gradient", "the gradient"), ("loss", "the loss"), ("weight", "a weight")])
def test_what_is_not_finite_is_named_with_its_step(
    store: Store, monkeypatch: pytest.MonkeyPatch, what: str, message: str
) -> None:
    plain = loop.Loop.training_step

    def poisoned(self, model, inputs, *args, **rest):
        loss = plain(self, model, inputs, *args, **rest)
        if self.state.global_step == 4 and what == "gradient":
            model.model.norm.weight.grad[0] = torch.nan
        if self.state.global_step == self.state.max_steps - 1 and what == "weight":
            model.model.norm.weight.data[0] = torch.inf
        return loss * torch.nan if self.state.global_step == 4 and what == "loss" else loss

    monkeypatch.setattr(loop.Loop, "training_step", poisoned)
    with pytest.raises(WorkError, match=message) as caught:
        train_expert(Request(store, start=base(store), blocks=[blocks(store)], train=settings(), seed=1))
    assert what == "weight" or caught.value.where == "step 5"
    assert not published(store)


def test_the_watch_reads_a_gpu_seldom_and_still_knows_the_step() -> None:
    class Standing:
        args = type("Args", (), {"device": torch.device("cpu")})
        loss_sum, grad_norm = torch.tensor(1.0), torch.tensor(1.0)

    state = type("State", (), {"global_step": 0, "max_steps": 100})
    control = type("Control", (), {"should_save": False})
    standing = Standing()
    watch = loop.Watch(standing, every=20)
    for step in range(1, 20):
        state.global_step = step
        if step == 7:
            standing.grad_norm = torch.tensor(torch.inf)
        watch.on_step_end(None, state, control)
    state.global_step = 20
    with pytest.raises(WorkError) as caught:
        watch.on_step_end(None, state, control)
    assert caught.value.where == "step 7"


# What is asked for and what is in effect (trap 3)


@pytest.mark.parametrize(
    ("environment", "refused"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, True),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29501"}, True),
        ({"ACCELERATE_USE_FSDP": "true"}, False),  # not in effect with one process
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, False),  # the Trainer's own setting overrules it
    ],
)
def test_the_environment_cannot_change_the_run(
    store: Store, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], refused: bool
) -> None:
    inputs = {"start": base(store), "blocks": [blocks(store)], "train": settings(), "seed": 1}
    expected = train_expert(Request(Store(store.root.parent / "other"), **inputs)).digest
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if not refused:
        assert train_expert(Request(store, **inputs)).digest == expected
        return
    with pytest.raises(RequestError, match="environment") as caught:
        train_expert(Request(store, **inputs))
    assert "unset" in caught.value.do
    assert not published(store)


def test_settings_that_would_change_a_run_silently_are_off(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[loop.Loop] = []
    plain = loop.Loop.train
    monkeypatch.setattr(loop.Loop, "train", lambda self, **given: (kept.append(self), plain(self, **given))[1])
    train_expert(Request(store, start=base(store), blocks=[blocks(store)], train=settings(), seed=1))
    args = kept[0].args
    assert not args.logging_nan_inf_filter
    assert args.label_smoothing_factor == 0.0
    assert kept[0].label_smoother is None
    assert not kept[0].model.config.use_cache or args.use_cache is False
    assert args.max_steps == kept[0].state.max_steps
    assert kept[0].state.epoch == 1.0
