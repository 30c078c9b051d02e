"""Fresh weights: one seed, one set of weights; devices and precision."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.experts.making import VOCABULARY, tokenizer
from tests.models.architectures import make

from coterie.models import device, parameters
from coterie.models.checkpoint import checkpoint
from coterie.models.initialise import initialise
from coterie.models.lora_settings import Lora
from coterie.models.open import open_model
from coterie.recipe.base import FreshBase
from coterie.store import DryStore, Store

SMALL = {"hidden_size": 16, "layers": 2, "heads": 2}


@pytest.mark.parametrize("init", ["llama", "gpt2", "qwen3"])
def test_fresh_weights_open_as_a_strict_checkpoint(tmp_path: Path, init: str) -> None:
    store = Store(tmp_path)
    made = initialise(store, FreshBase(init=init, **SMALL), tokenizer(store), seed=0, sequence_length=32)
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= set(made.files)
    config = checkpoint(made.path) and open_model(made).config
    assert config.model_type == init
    assert config.vocab_size == VOCABULARY
    assert (config.bos_token_id, config.eos_token_id) == (0, 1)
    assert config.max_position_embeddings == 128
    assert str(tmp_path) not in (made.path / "config.json").read_text()


def test_sizes_reach_the_architecture(tmp_path: Path) -> None:
    store, words = Store(tmp_path), tokenizer(Store(tmp_path))
    sizes = {"hidden_size": 24, "layers": 3, "heads": 4, "kv_heads": 2, "intermediate_size": 40, "context": 99}
    base = FreshBase(init="qwen3", tie_embeddings=False, **sizes)
    model = open_model(initialise(store, base, words, seed=0, sequence_length=32))
    layer = model.model.layers[0]
    assert len(model.model.layers) == 3
    assert layer.self_attn.q_proj.weight.shape == (24, 24)
    assert layer.self_attn.k_proj.weight.shape == (12, 24)
    assert layer.mlp.up_proj.weight.shape == (40, 24)
    assert model.config.max_position_embeddings == 99
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    default = initialise(store, FreshBase(init="llama", hidden_size=32, layers=1, heads=2), words, seed=0, sequence_length=8)
    assert open_model(default).config.intermediate_size == 96  # 8/3 x 32 = 85.3, rounded up to 32


def test_the_seed_decides_and_nothing_else_does(tmp_path: Path) -> None:
    store, other, base = Store(tmp_path / "a"), Store(tmp_path / "b"), FreshBase(init="llama", **SMALL)
    words = tokenizer(store)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = initialise(store, base, words, seed=0, sequence_length=32)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert initialise(other, base, words, seed=0, sequence_length=32).digest == first.digest
    assert initialise(store, base, words, seed=1, sequence_length=32).digest != first.digest
    own = base.model_copy(update={"seed": 0})
    assert initialise(store, own, words, seed=1, sequence_length=32).digest == first.digest
    renamed = base.model_copy(update={"knowledge_until": "2020-01-01", "tokenizer": "elsewhere"})
    assert initialise(store, renamed, words, seed=0, sequence_length=32).digest == first.digest


def test_a_plan_opens_nothing(tmp_path: Path) -> None:
    dry = DryStore(tmp_path)
    planned = initialise(dry, FreshBase(init="llama"), tokenizer(dry), seed=0, sequence_length=32)
    assert planned.planned
    assert not planned.path.exists()


def test_kinds_choose_their_parameters() -> None:
    for architecture in ("llama", "gpt2", "gemma2", "qwen3"):
        model = make(architecture)
        parameters.train_only_feed_forward(model)
        moving = {name for name, p in model.named_parameters() if p.requires_grad}
        assert moving
        assert all(".mlp." in name for name in moving)
        assert not any("attn" in name or "embed" in name or "norm" in name for name in moving)
        assert parameters.count(model, trained=True) < parameters.count(model)
    adapted = parameters.add_adapter(make("llama"), Lora(r=2, targets=("q_proj",)))
    moving = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(moving) == 2 * 2
    assert all("q_proj.lora_" in name for name in moving)
    assert "default" in adapted.peft_config  # names of digits lose their weights on saving
    with pytest.raises(ValueError, match="adapter finds none"):
        parameters.add_adapter(make("llama"), Lora(targets=("nowhere",)))


def test_fingerprints_see_one_bit() -> None:
    model = make("llama")
    before = parameters.fingerprints(model)
    weight = model.model.norm.weight
    weight.data.view(torch.int32)[3] ^= 1
    after = parameters.fingerprints(model)
    assert [name for name in before if before[name] != after[name]] == ["model.norm.weight"]


def test_precision_is_resolved_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = "cpu"
    assert device.precision("fp32", cpu) == "fp32"
    assert device.precision("bf16", cpu) == "bf16"
    monkeypatch.setattr(device, "_has_amx", lambda: True)
    assert device.numerics(cpu, device.precision("auto", cpu)) == "cpu-bf16"
    monkeypatch.setattr(device, "_has_amx", lambda: False)
    assert device.numerics(cpu, device.precision("auto", cpu)) == "cpu-fp32"


def test_no_path_of_this_machine_is_in_the_files(tmp_path: Path) -> None:
    store = Store(tmp_path)
    made = initialise(store, FreshBase(init="gpt2", **SMALL), tokenizer(store), seed=0, sequence_length=32)
    for name in made.files:
        if name.endswith(".json"):
            assert str(tmp_path) not in json.dumps(json.loads(made.file(name).read_text()))
