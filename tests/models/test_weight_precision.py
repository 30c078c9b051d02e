"""Weights are written in the precision of what they come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny import llama, write_checkpoint

from coterie.models.open import open_model
from coterie.models.weight_precision import save_model, torch_dtype, weight_precision


@pytest.mark.parametrize("written", ["fp32", "bf16", "fp16"])
def test_found_in_the_files(written: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, dtype=torch_dtype(written))
    assert weight_precision(tmp_path) == written


def test_found_in_shards(tmp_path: Path) -> None:
    llama().to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert weight_precision(tmp_path) == "bf16"


@pytest.mark.parametrize("tied", [False, True])
def test_a_wider_model_is_rounded_on_writing_and_stays_as_it_is(tied: bool, tmp_path: Path) -> None:
    model = llama()
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_model(model, tmp_path, "bf16")
    found = load_file(tmp_path / "model.safetensors")
    assert {t.dtype for t in found.values()} == {torch.bfloat16}
    assert ("lm_head.weight" in found) != tied
    assert all(torch.equal(found[name], before[name].to(torch.bfloat16)) for name in found)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {p.dtype for p in open_model(tmp_path, dtype="auto").parameters()} == {torch.bfloat16}
