"""GGUF files, read back by the package that writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.mixtures.layers.cases import mixture
from tests.tiny import write_tokenizer

from coterie.errors import RequestError, WorkError
from coterie.mixtures.export import gguf as ours

gguf = pytest.importorskip("gguf")


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize(("dtype", "most"), [("fp32", 1e-4), ("fp16", 0.05), ("q8_0", 1.0)])
def test_what_is_read_back_is_the_mixture(kind: str, dtype: str, most: float, tmp_path: Path) -> None:
    model, _ = mixture(kind, (0, 1, 2), top_k=2, intermediate_size=64)
    model.save_pretrained(tmp_path / "own")
    said: list[str] = []
    done = ours.export_gguf(tmp_path / "own", tmp_path / "new/model.gguf", dtype=dtype, say=said.append)
    assert done.difference < most
    assert (dtype == "fp32") == (done.difference < 1e-5)
    assert said[0].startswith("gguf, 3 experts")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["model.gguf"]
    reader = gguf.GGUFReader(tmp_path / "new/model.gguf")
    tensors = {t.name: t for t in reader.tensors}
    assert {"F32": "fp32", "F16": "fp16", "Q8_0": "q8_0"}[tensors["blk.1.ffn_up_exps.weight"].tensor_type.name] == dtype
    assert tensors["blk.1.ffn_up_exps.weight"].shape.tolist() == [32, 64, 3]
    assert tensors["blk.0.ffn_gate_inp.weight"].tensor_type.name == "F32"
    field = reader.fields
    assert field["general.architecture"].contents() == "llama"
    assert (field["llama.expert_count"].contents(), field["llama.expert_used_count"].contents()) == (3, 2)
    assert field["llama.rope.freq_base"].contents() == pytest.approx(model.config.text_config.rope_parameters["rope_theta"])


def test_rotary_heads_are_turned_as_the_converter_of_llama_cpp_turns_them() -> None:
    weight_DH = torch.randn(24, 5)
    turned = ours._interleaved(lambda: weight_DH, 3).numpy()
    reference = weight_DH.numpy().reshape(3, 2, 4, 5).swapaxes(1, 2).reshape(24, 5)
    assert np.array_equal(turned, reference)
    assert torch.equal(ours._halves(torch.from_numpy(turned), 3), weight_DH)


def test_slots_fold_and_expand(tmp_path: Path) -> None:
    model, _ = mixture("llama", (0, 1, 1))
    for gate in model.router:
        torch.nn.init.zeros_(gate.weight)
    model.save_pretrained(tmp_path / "own")
    with pytest.raises(RequestError, match="cannot be folded"):
        ours.export_gguf(tmp_path / "own", tmp_path / "few.gguf")
    assert ours.export_gguf(tmp_path / "own", tmp_path / "many.gguf", expand=True).experts == 3
    with pytest.raises(RequestError, match="something already"):
        ours.export_gguf(tmp_path / "own", tmp_path / "many.gguf", expand=True)


def test_the_tokenizer_goes_with_it(tmp_path: Path) -> None:
    model, _ = mixture("llama", (0, 1), vocab_size=100)
    model.save_pretrained(tmp_path / "own")
    write_tokenizer(tmp_path / "own")
    ours.export_gguf(tmp_path / "own", tmp_path / "model.gguf")
    field = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert field["tokenizer.ggml.model"].contents() == "gpt2"
    tokens = field["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == 100
    assert tokens[0] == "<eos>"
    assert field["tokenizer.ggml.eos_token_id"].contents() == 0


def test_tied_heads_and_scaled_positions(tmp_path: Path) -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    model, _ = mixture("llama", (0, 1), tie_word_embeddings=True, rope_parameters=rope)
    model.save_pretrained(tmp_path / "own")
    assert ours.export_gguf(tmp_path / "own", tmp_path / "model.gguf").difference < 1e-5
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert "output.weight" not in {t.name for t in reader.tensors}
    assert reader.fields["llama.rope.scaling.factor"].contents() == 2.0


def test_what_it_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = mixture("qwen3", (0, 1))
    model.save_pretrained(tmp_path / "qwen3")
    with pytest.raises(RequestError, match="qwen3 model cannot be written as gguf"):
        ours.export_gguf(tmp_path / "qwen3", tmp_path / "model.gguf")
    model, _ = mixture("llama", (0, 1))
    model.save_pretrained(tmp_path / "own")
    with pytest.raises(RequestError, match="fp32, fp16 or q8_0"):
        ours.export_gguf(tmp_path / "own", tmp_path / "model.gguf", dtype="bf16")
    monkeypatch.setattr(ours, "_interleaved", lambda read, heads: read())
    with pytest.raises(WorkError, match="does not compute"):
        ours.export_gguf(tmp_path / "own", tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
