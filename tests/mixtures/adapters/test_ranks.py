"""Joint training on two ranks is joint training on one: the balance loss, which is no sum over tokens, included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.mixtures.adapters.test_recipe import lora

import coterie
from coterie.errors import RequestError


def joint(
    folder: Path, processes: int | None, shape: tuple[int, int] = (4, 1), precision: str = "fp32", **router: Any
) -> coterie.Run:
    train: dict[str, Any] = {"learning_rate": 0.01, "batch_size": shape[0], "accumulation": shape[1], "threads": 1}
    train["precision"] = precision
    train |= {"parallel": "ddp", "processes": processes} if processes else {}
    asked = lora(folder / "data", experts=[], evaluation=[])
    asked["mixtures"] = [
        {
            "name": "joint",
            "at": "adapters",
            "router": {"kind": "learned", **router},
            "joint": {
                "experts": 3,
                "lora": {"r": 4, "alpha": 8},
                "corpora": {"fruit": 0.7, "tools": 0.3},
                "tokens": 2000,
                "train": train,
            },
        }
    ]
    return coterie.run(asked, store=folder / f"store-{processes}", out=folder / f"out-{processes}")


LOSSES = {"balance": 0.5, "z": 0.01}


def trained(run: coterie.Run) -> dict[str, torch.Tensor]:
    folder = run.out / "mixtures" / "joint"
    parts = [folder / "router.safetensors", *folder.glob("experts/*/adapter_model.safetensors")]
    return {f"{part.parent.name}/{name}": tensor for part in parts for name, tensor in load_file(part).items()}


@pytest.mark.slow
@pytest.mark.parametrize("router", [LOSSES, {"top_k": 1, "balance": 0.5, "entropy": 0.01}])
def test_two_ranks_train_the_mixture_that_one_trains(router: dict[str, Any], tmp_path: Path) -> None:
    one, two = (trained(joint(tmp_path, processes, **router)) for processes in (None, 2))
    assert len({name.partition("/")[0] for name in one}) == 4
    assert max(t.abs().max() for t in one.values()) > 1e-3, "nothing was learned: equality would mean nothing"
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-5), name


@pytest.mark.slow
def test_in_bf16_what_two_ranks_train_differs_by_rounding(tmp_path: Path) -> None:
    """A product of bf16 rounds as the shape of its batch has it, and ranks have other shapes: 1 in 256 an element, which
    AdamW turns into whole steps where a gradient is near zero. No tensor may be further off than a tenth of its length."""
    one, two = (trained(joint(tmp_path, processes, precision="bf16", **LOSSES)) for processes in (None, 2))
    for name, tensor in one.items():
        assert (tensor - two[name]).norm() < 0.1 * tensor.norm(), name


def test_a_batch_that_ranks_cannot_share_is_refused_where_balance_needs_it_whole(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot share evenly"):
        joint(tmp_path, 2, (1, 2), balance=0.1)
