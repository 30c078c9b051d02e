"""Dense references of the same experts, against slow ones of our own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.weight_merging import combine
from tests.mixtures.layers.cases import base, expert, ids, logp
from transformers import AutoModelForCausalLM

from coterie.errors import RequestError
from coterie.mixtures.layers.expert_weights import Directory, source


@pytest.fixture
def three(tmp_path: Path) -> Path:
    start = base("llama")
    start.save_pretrained(tmp_path / "base")
    for u in range(3):
        expert(start, u).save_pretrained(tmp_path / f"e{u}")
    return tmp_path


def combined(folder: Path, method: str, **how) -> dict[str, torch.Tensor]:
    start = Directory(folder / "base")
    out = combine(start, [source(folder / f"e{u}", start, f"e{u}") for u in range(3)], folder / method, method, **how)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert torch.isfinite(logp(model, ids())).all()
    return model.state_dict()


def states(folder: Path) -> tuple[dict, list[dict]]:
    models = [AutoModelForCausalLM.from_pretrained(folder / n).state_dict() for n in ("base", "e0", "e1", "e2")]
    return models[0], models[1:]


def test_the_average_is_the_mean_of_the_parameters(three: Path) -> None:
    _, experts = states(three)
    for name, tensor in combined(three, "average", shard_bytes=20_000).items():
        assert torch.allclose(tensor, torch.stack([e[name] for e in experts]).mean(0), atol=1e-6), name


def test_task_arithmetic_adds_what_changed(three: Path) -> None:
    start, experts = states(three)
    for name, tensor in combined(three, "task_arithmetic", weight=0.5).items():
        assert torch.allclose(tensor, start[name] + 0.5 * sum(e[name] - start[name] for e in experts), atol=1e-6), name


def test_ties_keeps_the_largest_changes_of_one_sign(three: Path) -> None:
    start, experts = states(three)
    for name, tensor in combined(three, "ties", density=0.3).items():
        changes = torch.stack([(e[name] - start[name]).flatten() for e in experts])
        kept = torch.zeros_like(changes)
        for row, change in enumerate(changes):
            top = change.abs().topk(int(0.3 * len(change))).indices
            kept[row, top] = change[top]
        sign = torch.where(kept.sum(0) >= 0, 1.0, -1.0)
        agree = (kept.sign() == sign) & (kept != 0)
        mean = (kept * agree).sum(0) / agree.sum(0).clamp_min(1)
        assert torch.allclose(tensor.flatten(), start[name].flatten() + mean, atol=1e-6), name


def test_a_weight_that_would_be_ignored_is_an_error(three: Path) -> None:
    with pytest.raises(RequestError, match="no weight"):
        combined(three, "average", weight=0.5)
