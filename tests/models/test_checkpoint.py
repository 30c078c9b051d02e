"""What a model directory must be before anything rests on it, and how it is opened."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models.architectures import make

from coterie.errors import RequestError
from coterie.models import parameters
from coterie.models.checkpoint import checkpoint, contents
from coterie.models.lora_settings import Lora
from coterie.models.open import open_model
from coterie.models.quiet import quiet, seeded


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with quiet():
        make("llama", tie_word_embeddings=True).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    return tmp_path / "model"


def edit(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(value | changes))


def rewrite(folder: Path, change: object) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_good_directory_is_hashed_where_it_lies(folder: Path) -> None:
    found = checkpoint(folder)
    assert found.kind == "weights"
    assert found.path == folder
    assert set(found.files) == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert checkpoint(str(folder)).digest == found.digest
    (folder / "notes.txt").write_text("not part of the model")
    assert checkpoint(folder).digest == found.digest


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_every_file_that_decides_the_function_is_in_the_digest(folder: Path, file: str) -> None:
    before = checkpoint(folder)
    if file == "model.safetensors":
        rewrite(folder, lambda tensors: tensors["model.norm.weight"].add_(1e-3))
    elif file == "chat_template.jinja":
        (folder / file).write_text("{{ messages }}")
    else:
        edit(folder / file, added=1)
    after = checkpoint(folder)
    assert after.digest != before.digest
    assert contents(after) != contents(before)


def test_contents_leave_figures_and_logs_out(folder: Path) -> None:
    artifact = checkpoint(folder)
    with_logs = type(artifact)("experts", "d", folder, {**artifact.files, "facts.json": "x", "metrics.jsonl": "y"})
    assert contents(with_logs) == contents(artifact)


def test_a_model_opens_as_it_was_saved(folder: Path) -> None:
    model = open_model(folder)
    for name, tensor in load_file(folder / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert model.config._attn_implementation == "sdpa"
    assert not model.config.use_cache
    assert not model.training


def _missing(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))


def _unexpected(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update(extra=torch.ones(2)))


def _misshapen(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(3)}))


def _nan(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors["model.norm.weight"].__setitem__(3, torch.nan))


def _infinite(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors["model.norm.weight"].__setitem__(3, -torch.inf))


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-100])


def _remote_code(folder: Path) -> None:
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})


def _tokenizer_code(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["evil.T", None]}}))


def _hub_kernel(folder: Path) -> None:
    edit(folder / "config.json", _attn_implementation="somebody/kernel")


def _sharded(folder: Path, **weight_map: str) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    names = load_file(folder / "model-00001-of-00001.safetensors")
    shards = dict.fromkeys(names, "model-00001-of-00001.safetensors") | weight_map
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def _missing_shard(folder: Path) -> None:
    _sharded(folder, more="model-00002-of-00002.safetensors")


def _outside(folder: Path) -> None:
    (folder.parent / "other.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    _sharded(folder, more="../other.safetensors")


def _unknown_architecture(folder: Path) -> None:
    edit(folder / "config.json", model_type="no-such-model")


def _no_architecture(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_missing, "missing tensors"),
        (_unexpected, "unexpected tensors"),
        (_misshapen, "mismatched tensors"),
        (_nan, "not finite"),
        (_infinite, "not finite"),
        (_pickled, "pickled weights are refused"),
        (_truncated, "damaged weights"),
        (_remote_code, "code from elsewhere"),
        (_tokenizer_code, "code from elsewhere"),
        (_hub_kernel, "code from elsewhere"),
        (_missing_shard, "a part of the weights is missing"),
        (_outside, "outside the directory"),
        (_unknown_architecture, "cannot be opened"),
        (_no_architecture, "names no architecture"),
        (_no_config, "not a Hugging Face model directory"),
        (_broken_config, "cannot be read as JSON"),
    ],
)
def test_what_is_not_a_whole_safe_finite_model_is_refused(folder: Path, damage: object, message: str) -> None:
    damage(folder)
    with pytest.raises(RequestError, match=message):
        checkpoint(folder)


def test_pickles_beside_safetensors_are_not_read(folder: Path) -> None:
    before = checkpoint(folder).digest
    (folder / "training_args.bin").write_bytes(b"\x80\x04 would run")
    assert checkpoint(folder).digest == before


def test_shards_open(folder: Path) -> None:
    whole = open_model(folder).state_dict()
    _sharded(folder)
    found = checkpoint(folder)
    assert "model-00001-of-00001.safetensors" in found.files
    assert all(torch.equal(tensor, whole[name]) for name, tensor in open_model(found).state_dict().items())


def test_a_hub_id_without_a_network_names_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RequestError, match="hub") as caught:
        checkpoint("nobody/no-such-model-here")
    assert "base.path" in caught.value.do


@pytest.mark.parametrize("path", ["/no/such/dir", "../away", "a/b/c", "~nobody/x", "-rf"])
def test_what_is_neither_a_directory_nor_an_id(path: str) -> None:
    with pytest.raises(RequestError, match="no such directory"):
        checkpoint(path)


def test_an_adapter_opens_on_its_base_alone(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = checkpoint(folder)
    adapted = parameters.add_adapter(open_model(base), Lora(r=4))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapter = tmp_path / "adapter"
    adapted.save_pretrained(adapter)
    (adapter / "facts.json").write_text(json.dumps({"base": contents(base)}))
    ids_BT = torch.arange(8)[None]
    with torch.no_grad():
        opened = open_model(adapter, base=base)
        assert torch.equal(opened(ids_BT).logits, adapted.eval()(ids_BT).logits)
    assert not any(p.requires_grad for p in opened.parameters())
    with pytest.raises(RequestError, match="needs the model it rests on"):
        open_model(adapter)

    rewrite(folder, lambda tensors: tensors["model.norm.weight"].add_(1e-3))
    with pytest.raises(RequestError, match="another base"):
        open_model(adapter, base=checkpoint(folder))
    with pytest.raises(RequestError, match="another base"):
        open_model(adapter, base=folder)

    (adapter / "facts.json").unlink()
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name.replace("q_proj", "no_proj"): t for name, t in tensors.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(RequestError, match="does not fit"):
        open_model(adapter, base=folder)


def test_random_numbers_outside_are_left_alone() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = torch.rand(3), np.random.rand(3), random.random()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    with seeded(7):
        inside = torch.rand(3), np.random.rand(3), random.random()
    assert torch.equal(torch.rand(3), expected[0])
    assert (np.random.rand(3) == expected[1]).all()
    assert random.random() == expected[2]
    with seeded(7):
        again = torch.rand(3), np.random.rand(3), random.random()
    assert torch.equal(inside[0], again[0])
    assert (inside[1] == again[1]).all()
    assert inside[2] == again[2]
