"""A recipe on a bf16 checkpoint: what is trained is written in the checkpoint's precision, and merges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.run.small import recipe
from tests.tiny import write_checkpoint

import coterie


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("bf16")
    experts = [
        {"name": "fruit", "corpus": "fruit", "kind": "ffn"},
        {"name": "tools", "corpus": "tools", "kind": "full", "train": {"snapshots": 0.5}},
        {"name": "later", "corpus": "tools", "kind": "ffn", "from": "fruit"},
        {"name": "low", "corpus": "tools", "kind": "lora", "lora": {"r": 2, "targets": ["up_proj", "down_proj"]}},
    ]
    mixtures = [
        {"name": "exact", "at": "layers", "slots": ["fruit", "later", "low"], "router": "ridge"},
        {"name": "averaged", "at": "layers", "slots": ["fruit", "tools"], "shared": "average"},
        {"name": "tuned", "at": "layers", "slots": ["fruit", "later"], "tune": {"what": "gate+experts", "tokens": 600}},
    ]
    asked = recipe(home / "data", experts=experts, mixtures=mixtures, single=False)
    asked["base"] = {"path": str(write_checkpoint(home / "base"))}
    return coterie.run(asked, store=home / "store", out=home / "out")


def test_what_is_trained_says_its_precision_and_has_the_bases(run: Any) -> None:
    for name in ("fruit", "tools", "later"):
        folder = run.out / "experts" / name
        assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
        assert '"written": "bf16"' in (folder / "facts.json").read_text()
        assert '"dtype": "bfloat16"' in (folder / "config.json").read_text()
    assert {t.dtype for t in load_file(run.out / "experts/low/adapter_model.safetensors").values()} == {torch.float32}
    assert "written" not in (run.out / "experts/low/facts.json").read_text()


@pytest.mark.parametrize("name", ["exact", "averaged", "tuned"])
def test_it_merges_and_stays_in_that_precision(run: Any, name: str) -> None:
    files = list((run.out / "mixtures" / name / "experts").glob("model*.safetensors"))
    assert {t.dtype for f in files for t in load_file(f).values()} == {torch.bfloat16}
    assert '"dtype": "bfloat16"' in (run.out / "mixtures" / name / "config.json").read_text()
    assert 0 < run.summary["evaluation"]["losses"][name]["all"]["nll"] < 8


def test_an_expert_alone_in_the_mixture_is_that_expert(run: Any) -> None:
    mixture, expert = run.mixtures["exact"], coterie.load(run.out / "experts/later")
    ids_BT = torch.randint(3, 90, (2, 16), generator=torch.Generator().manual_seed(0))
    with mixture.only(1):
        assert (mixture.log_probs(ids_BT) - expert.log_probs(ids_BT)).abs().max() < 1e-5
