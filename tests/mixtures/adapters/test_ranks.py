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


def joint(folder: Path, processes: int | None, shape: tuple[int, int] = (4, 1), **router: Any) -> coterie.Run:
    train: dict[str, Any] = {"learning_rate": 0.01, "batch_size": shape[0], "accumulation": shape[1], "threads": 1}
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


@pytest.mark.parametrize("router", [{"balance": 0.5, "z": 0.01}, {"top_k": 1, "balance": 0.5, "entropy": 0.01}])
def test_two_ranks_train_the_mixture_that_one_trains(router: dict[str, Any], tmp_path: Path) -> None:
    one, two = joint(tmp_path, None, **router), joint(tmp_path, 2, **router)
    parts = ["router.safetensors", *(f"experts/expert-{i}/adapter_model.safetensors" for i in (1, 2, 3))]
    for part in parts:
        a, b = (load_file(run.out / "mixtures" / "joint" / part) for run in (one, two))
        assert max(t.abs().max() for t in a.values()) > 1e-3, "nothing was learned: equality would mean nothing"
        for name in a:
            assert torch.allclose(a[name], b[name], atol=1e-5), (part, name)


def test_a_batch_that_ranks_cannot_share_is_refused_where_balance_needs_it_whole(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot share evenly"):
        joint(tmp_path, 2, (1, 2), balance=0.1)
