"""Model folders made to hang, to fill memory or to read elsewhere: each refused, quickly, before anything is opened."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.forked import coterie as command
from tests.mixtures.adapters.cases import mixture as adapters_mixture
from tests.mixtures.layers.cases import mixture as layers_mixture
from tests.tiny import gpt2, llama, write_tokenizer

import coterie
from coterie.errors import RequestError
from coterie.models.checkpoint import checkpoint
from coterie.models.open import open_model

SECONDS = 5


@pytest.fixture
def model(tmp_path: Path) -> Path:
    llama(1).save_pretrained(tmp_path / "m")
    return write_tokenizer(tmp_path / "m")


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path, *ways: Callable[[Path], object]) -> RequestError:
    """Every way in refuses it, soon; the last error."""
    error: RequestError | None = None
    for way in ways or (coterie.load, checkpoint, open_model):
        began = time.monotonic()
        with pytest.raises(RequestError) as caught:
            way(folder)
        assert time.monotonic() - began < SECONDS
        error = caught.value
    assert error is not None
    assert error.where
    return error


CLAIMS: list[dict[str, Any]] = [
    {"hidden_size": 2**31, "num_hidden_layers": 10**6},
    {"hidden_size": 2**31},
    {"hidden_size": 2**62},
    {"num_hidden_layers": 10**6},
    {"num_hidden_layers": 60_000},
    {"num_hidden_layers": 2**40},
    {"num_hidden_layers": 1e9},
    {"num_hidden_layers": -1},
    {"intermediate_size": 2**40},
    {"vocab_size": 2**40},
    {"num_attention_heads": 2**30},
    {"num_key_value_heads": 2**30},
    {"head_dim": 2**30},
    {"num_labels": 2**31},
    {"max_position_embeddings": "many"},
    {"hidden_size": 0},
    {"model_type": ["llama"]},
    {"model_type": "nothing-of-ours"},
    {"rope_parameters": {"rope_type": "no such", "rope_theta": 1.0}},
]


@pytest.mark.parametrize("claim", CLAIMS, ids=str)
def test_sizes_that_no_weights_are_behind(model: Path, claim: dict[str, Any]) -> None:
    configure(model, **claim)
    refused(model)


def test_a_claim_of_memory_in_masks(tmp_path: Path) -> None:
    gpt2(1).save_pretrained(tmp_path / "m")
    configure(tmp_path / "m", n_positions=2**22)
    refused(tmp_path / "m")


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json", "more"]
)
def test_a_pipe_in_place_of_a_file(model: Path, file: str) -> None:
    (model / file).unlink(missing_ok=True)
    os.mkfifo(model / file)
    assert file in str(refused(model).where)


def test_a_device_in_place_of_a_file(model: Path) -> None:
    (model / "generation_config.json").unlink()
    (model / "generation_config.json").symlink_to("/dev/zero")
    assert "generation_config.json" in str(refused(model).where)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize("text", ["[" * 3000, '{"a":' * 100_000, "[1]", "", "\xff", '{"a": 1'])
def test_a_configuration_that_is_none(model: Path, file: str, text: str) -> None:
    (model / file).write_bytes(text.encode("latin-1"))
    assert file in str(refused(model).where)


def test_an_index_that_names_a_file_outside(model: Path) -> None:
    names = list(load_file(model / "model.safetensors"))
    for place in ("../outside.safetensors", str(model.parent / "outside.safetensors"), "../m/../outside.safetensors"):
        shutil.copy(model / "model.safetensors", model.parent / "outside.safetensors")
        (model / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, place)})
        )
        refused(model)
    (model / "model.safetensors").unlink()
    assert "index" in str(refused(model).where)


def test_an_index_of_a_mixture_that_names_a_file_outside(tmp_path: Path) -> None:
    layers_mixture("llama")[0].save_pretrained(tmp_path / "m", max_shard_size="10KB")
    index = tmp_path / "m" / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    first = next(iter(found["weight_map"]))
    shutil.move(tmp_path / "m" / found["weight_map"][first], tmp_path / "outside.safetensors")
    gone = found["weight_map"][first]
    found["weight_map"] = {n: "../outside.safetensors" if f == gone else f for n, f in found["weight_map"].items()}
    index.write_text(json.dumps(found))
    refused(tmp_path / "m", coterie.load)


@pytest.mark.parametrize(
    "config",
    [
        {"attn_implementation": "somebody/kernel"},
        {"_attn_implementation": "somebody/kernel"},
        {"_attn_implementation": {"": "somebody/kernel"}},
        {"experts_implementation": "somebody/kernel"},
        {"text_config": {"attn_implementation": "somebody/kernel:rev"}},
    ],
    ids=str,
)
def test_a_kernel_by_name(model: Path, config: dict[str, Any]) -> None:
    configure(model, **config)
    assert "refused" in str(refused(model))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_in_a_model(model: Path, bad: float) -> None:
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name][3, 4] = bad
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert name in str(refused(model).where)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["adapters", "layers"])
def test_numbers_that_are_none_in_a_mixture(tmp_path: Path, place: str, bad: float) -> None:
    made = layers_mixture("llama")[0] if place == "layers" else adapters_mixture("llama")
    made.save_pretrained(tmp_path / "m")
    assert coterie.load(tmp_path / "m")
    for file in sorted((tmp_path / "m").rglob("*.safetensors")):
        tensors = load_file(file)
        name = sorted(tensors)[0]
        changed = {**tensors, name: tensors[name].clone()}
        changed[name].view(-1)[0] = bad
        save_file(changed, file, metadata={"format": "pt"})
        refused(tmp_path / "m", coterie.load)
        save_file(tensors, file, metadata={"format": "pt"})


def test_a_header_of_weights_that_claims_more_than_there_is(model: Path) -> None:
    path = model / "model.safetensors"
    for header in (
        b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,16]}}',
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,1099511627776]}}',
        b'{"a":' + b"[" * 3000,
    ):
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
        assert str(path) in str(refused(model))
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    assert str(path) in str(refused(model))


@pytest.mark.parametrize(
    "change",
    [
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"},
        {"r": 2**40},
        {"rank_pattern": {"q_proj": 2**40}},
        {"r": "many"},
    ],
    ids=str,
)
def test_an_adapter_that_asks_for_a_module_or_for_memory(tmp_path: Path, change: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    base = tmp_path / "base"
    llama(1).save_pretrained(base)
    get_peft_model(llama(1), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "a"
    )
    path = tmp_path / "a" / "adapter_config.json"
    given = json.loads(path.read_text())
    path.write_text(json.dumps(given | change))
    refused(tmp_path / "a", lambda folder: coterie.load(folder, base=base), lambda folder: open_model(folder, base=base))


def test_a_command_refuses_in_time(model: Path) -> None:
    configure(model, hidden_size=2**31, num_hidden_layers=10**6)
    command("--version", cwd=model.parent)  # the server that forks is up
    began = time.monotonic()
    done = command("generate", str(model), "a", cwd=model.parent)
    assert time.monotonic() - began < SECONDS
    assert done.returncode == 2, done.stderr
    assert "config.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_whole_models_still_open(model: Path, tmp_path: Path) -> None:
    ids = torch.tensor([[1, 2, 3]])
    assert coterie.load(model).log_probs(ids).isfinite().all()
    gpt2(1).save_pretrained(tmp_path / "g")
    assert coterie.load(tmp_path / "g").log_probs(ids).isfinite().all()
