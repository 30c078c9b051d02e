"""The streaming merge: right, small in memory, and clear about what it refuses before it writes."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.mixtures.layers.cases import KINDS, base, expert, ids, logp, mixture
from transformers import PreTrainedModel

import coterie
from coterie.errors import RequestError
from coterie.mixtures.layers import tensor_shards as shards
from coterie.mixtures.layers.expert_weights import Directory, source
from coterie.mixtures.layers.layers_files import write_experts, write_rest
from coterie.mixtures.layers.merge import Merge, describe, gate_names


def saved(folder: Path, **models: PreTrainedModel) -> dict[str, Path]:
    for name, model in models.items():
        model.save_pretrained(folder / name)
    return {name: folder / name for name in models}


def merge(folder: Path, names: Sequence[str], **how: Any) -> Merge:
    start = Directory(folder / "base")
    return Merge(start, [source(folder / name, start, name) for name in names], **how)


def whole(it: Merge, folder: Path, seats: Sequence[int] | None = None, gates: Any = None, **more: Any) -> Any:
    seats = seats if seats is not None else list(range(len(it.experts)))
    if gates is None:
        gates = [torch.zeros(len(seats), it.base.config.hidden_size) for _ in it.blocks]
    named = dict(zip(gate_names(it.blocks, False), gates, strict=True))
    gate = {"kind": "given", "top_k": more.pop("top_k", None), "bias": False}
    (folder / "experts").mkdir(parents=True)
    figures = write_experts(it, folder / "experts", **more)
    settings = describe(it.base, [f"e{u}" for u in seats], seats, [None] * len(it.experts), gate)
    written = shards.stored(sorted((folder / "experts").glob("*.safetensors")))
    write_rest(settings, it.base.folder, written, named, folder)
    return coterie.load(folder), figures


@pytest.mark.parametrize("kind", KINDS)
def test_merged_from_files_is_merged_in_memory(kind: str, tmp_path: Path) -> None:
    model, experts = mixture(kind, top_k=2)
    start = base(kind)
    saved(tmp_path, base=start, e0=experts[0], e1=experts[1], e2=experts[2])
    gates = [gate.weight.detach() for gate in model.router]
    made, figures = whole(merge(tmp_path, ["e0", "e1", "e2"]), tmp_path / "out", [0, 1, 1, 2], gates, top_k=2)
    assert made.config.slot_to_expert == [0, 1, 1, 2]
    assert (made.log_probs(ids()) - model.log_probs(ids())).abs().max() < 1e-6
    assert figures["difference"] == {"e0": 0.0, "e1": 0.0, "e2": 0.0}


def test_small_shards_in_and_out_change_nothing(tmp_path: Path) -> None:
    start = base("llama", tie_word_embeddings=True)
    one, two = expert(start, 1), expert(start, 2)
    saved(tmp_path, base=start)
    for name, model in (("e0", one), ("e1", two)):
        model.save_pretrained(tmp_path / name, max_shard_size="10KB")
    assert len(list((tmp_path / "e0").glob("*.safetensors"))) > 2
    many, _ = whole(merge(tmp_path, ["e0", "e1"]), tmp_path / "many", shard_bytes=10_000)
    few, _ = whole(merge(tmp_path, ["e0", "e1"]), tmp_path / "few")
    files = list((tmp_path / "many/experts").glob("*.safetensors"))
    assert len(files) > 3
    assert all(f.stat().st_size < 20_000 for f in files)
    assert torch.equal(many.log_probs(ids()), few.log_probs(ids()))


def test_tied_or_not_the_head_is_the_bases(tmp_path: Path) -> None:
    for tied in (True, False):
        start = base("qwen2", tie_word_embeddings=tied)
        one = expert(start, 1)
        saved(tmp_path / str(tied), base=start, e0=one)
        made, _ = whole(merge(tmp_path / str(tied), ["e0"]), tmp_path / str(tied) / "out")
        assert (made.log_probs(ids()) - logp(one, ids())).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_an_adapter_of_feed_forward_linears_merges_exactly(kind: str, tmp_path: Path) -> None:
    start = base(kind)
    targets = ["c_fc"] if kind == "gpt2" else ["gate_proj", "up_proj", "down_proj"]
    adapted = lora(start, targets)
    saved(tmp_path, base=base(kind), low=adapted)
    made, figures = whole(merge(tmp_path, ["low"]), tmp_path / "out")
    assert (made.log_probs(ids()) - logp(adapted, ids())).abs().max() < 1e-5
    assert figures["difference"] == {"low": 0.0}


def lora(start: PreTrainedModel, targets: list[str]) -> Any:
    adapted: Any = get_peft_model(start, LoraConfig(r=3, lora_alpha=5, target_modules=targets, task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return adapted.eval()


def test_what_is_not_feed_forward_needs_a_rule(tmp_path: Path) -> None:
    start = base("llama")
    full = base("llama", seed=7)
    adapted = lora(base("llama"), ["q_proj", "up_proj"])
    saved(tmp_path, base=start, full=full, low=adapted)
    for name, tensor in (("full", "embed_tokens"), ("low", "q_proj")):
        with pytest.raises(RequestError, match="outside its feed-forward blocks") as caught:
            merge(tmp_path, [name]).check()
        assert tensor in str(caught.value)
        assert str(tmp_path / name) in str(caught.value)
        assert "shared: base" in str(caught.value)
    keep, figures = whole(merge(tmp_path, ["full"], shared="base"), tmp_path / "keep")
    assert figures["difference"]["full"] > 0.01
    assert torch.equal(keep.model.get_input_embeddings().weight, start.get_input_embeddings().weight)
    assert torch.equal(keep.blocks[0].experts[0].up_proj.weight, full.model.layers[0].mlp.up_proj.weight)
    one, _ = whole(merge(tmp_path, ["full"], shared="average"), tmp_path / "one")
    assert (one.log_probs(ids()) - logp(full, ids())).abs().max() < 1e-5
    both, _ = whole(merge(tmp_path, ["full", "low"], shared="average"), tmp_path / "both")
    mean = (full.state_dict()["model.norm.weight"] + start.state_dict()["model.norm.weight"]) / 2
    assert torch.allclose(both.model.model.norm.weight, mean)


def test_nothing_is_rounded_where_precisions_differ(tmp_path: Path) -> None:
    """A bf16 base and an expert that was trained elsewhere and kept in fp32, or the other way round: the wider one."""
    start = base("llama").to(torch.bfloat16)
    wide = expert(start, 1).float()
    saved(tmp_path, base=start, e0=start, e1=wide)
    made, figures = whole(merge(tmp_path, ["e0", "e1"]), tmp_path / "out")
    assert figures["difference"] == {"e0": 0.0, "e1": 0.0}
    assert {t.dtype for t in shards.stored((tmp_path / "out/experts").glob("*.safetensors")).values()} == {torch.float32}
    with made.only(1):
        assert (made.log_probs(ids()) - logp(wide, ids())).abs().max() < 1e-5


def test_a_merge_of_bf16_checkpoints_is_one(tmp_path: Path) -> None:
    start = base("llama").to(torch.bfloat16)
    one = expert(start, 1).to(torch.bfloat16)
    saved(tmp_path, base=start, e0=one)
    whole(merge(tmp_path, ["e0"]), tmp_path / "out")
    assert {t.dtype for t in shards.stored((tmp_path / "out/experts").glob("*.safetensors")).values()} == {torch.bfloat16}


def test_precision_can_be_given(tmp_path: Path) -> None:
    start = base("llama")
    saved(tmp_path, base=start, e0=expert(start, 1))
    whole(merge(tmp_path, ["e0"], dtype=torch.bfloat16), tmp_path / "out")
    assert {t.dtype for t in shards.stored((tmp_path / "out/experts").glob("*.safetensors")).values()} == {torch.bfloat16}


# bad input --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path) -> Path:
    start = base("llama")
    saved(tmp_path, base=start, e0=expert(start, 1), e1=expert(start, 2))
    return tmp_path


def refused(folder: Path, match: str, *named: str, **how: Any) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        whole(merge(folder, ["e0", "e1"], **how), folder / "out")
    for text in named:
        assert text in str(caught.value)
    assert not list((folder / "out").rglob("*.json"))


def test_another_shape_names_the_tensor_the_files_and_both_shapes(two: Path) -> None:
    tensors = load_file(two / "e1/model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(50, 32)
    save_file(tensors, two / "e1/model.safetensors", {"format": "pt"})
    refused(
        two, "another shape", "model.layers.1.mlp.up_proj.weight", str(two / "e1"), str(two / "base"), "[48, 32]", "[50, 32]"
    )


def test_another_architecture_names_the_setting(two: Path) -> None:
    config = json.loads((two / "e1/config.json").read_text())
    config["rms_norm_eps"] = 0.1
    (two / "e1/config.json").write_text(json.dumps(config))
    refused(two, "another architecture", "rms_norm_eps", "0.1")


def test_another_base_names_the_tensor(two: Path) -> None:
    expert(base("llama", seed=5), 1).save_pretrained(two / "e1")
    refused(two, "differs from the base", "embed_tokens", str(two / "e1"), str(two / "base"))


def test_another_tokenizer_names_both(two: Path) -> None:
    for name, vocab in (("e0", {"a": 0, "b": 1}), ("e1", {"a": 1, "b": 0})):
        (two / name / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocab}}))
    refused(two, "different tokenizers", "'e0'", "'e1'"[:3])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_never_finished(two: Path, value: float) -> None:
    tensors = load_file(two / "e1/model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
    save_file(tensors, two / "e1/model.safetensors", {"format": "pt"})
    refused(two, "not finite", "layers.1.mlp.experts.1.up_proj.weight")


def test_large_is_not_infinite() -> None:
    assert shards.finite(torch.full((4,), 3e38))
    assert not shards.finite(torch.tensor([1.0, float("-inf")]))
    assert not shards.finite(torch.tensor([1.0, float("nan")], dtype=torch.bfloat16))


def test_missing_and_misplaced_shards(two: Path) -> None:
    shutil.rmtree(two / "e1")
    expert(base("llama"), 2).save_pretrained(two / "e1", max_shard_size="10KB")
    first = min((two / "e1").glob("*.safetensors"))
    moved = first.rename(two / "away.safetensors")
    refused(two, "a part of the weights is missing", first.name)
    index = json.loads((two / "e1/model.safetensors.index.json").read_text())
    index["weight_map"] = {k: f"../{moved.name}" if v == first.name else v for k, v in index["weight_map"].items()}
    (two / "e1/model.safetensors.index.json").write_text(json.dumps(index))
    refused(two, "points outside the directory", "../away.safetensors")


def test_damaged_files(two: Path) -> None:
    file = two / "e1/model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    refused(two, "damaged weights", str(file))
    file.write_bytes(b"\xff" * 64)
    refused(two, "damaged weights", str(file))


def test_a_tensor_that_is_missing_or_too_many(two: Path) -> None:
    tensors = load_file(two / "e1/model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, two / "e1/model.safetensors", {"format": "pt"})
    refused(two, "a tensor is missing", "model.norm.weight")
    save_file(tensors | {"model.more": torch.zeros(2)}, two / "e1/model.safetensors", {"format": "pt"})
    refused(two, "not of the architecture", "model.more")


def test_too_little_disk_is_found_before_writing(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(two)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    refused(two, "disk is too small", "0.00 GB")
    assert not list((two / "out").rglob("*.safetensors"))


# memory -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "shard", "held"), [(2, 10**9, 4), (8, 10**9, 4), (3, 1.6, 3), (3, 1, 2)])
def test_few_tensors_are_held_whatever_the_number_of_experts(
    two: Path, count: int, shard: float, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every tensor is read into the same memory: four times the largest, less where that would be more than two shards."""
    for number in range(2, count):
        shutil.copytree(two / "e1", two / f"e{number}")
    it = merge(two, [f"e{u}" for u in range(count)])
    most = max(t.bytes for t in it.base.tensors.values())
    monkeypatch.setattr("coterie.mixtures.layers.merge.SHARD", int(shard * most))
    read, fresh = shards.Stored.read, []

    def counted(self: shards.Stored, scratch: torch.Tensor | None = None) -> torch.Tensor:
        fresh.append(scratch is None)
        tensor = read(self, scratch)
        assert scratch is None or any(tensor.data_ptr() == own.data_ptr() for own in (it._of_base, *it.scratch))
        return tensor

    monkeypatch.setattr(shards.Stored, "read", counted)
    it.check()
    (two / "parts").mkdir()
    shards.write(two / "parts", list(it.wanted()), 10**9, ahead=it.ahead, scratch=it.scratch)
    assert len(fresh) > 20
    assert not any(fresh)
    assert sum(len(own) for own in (it._of_base, *it.scratch)) == held * most
    written = load_file(two / "parts" / "model.safetensors")
    assert all(torch.equal(written[w.name], w.get()) for w in it.wanted())


class Unlucky(ThreadPoolExecutor):
    """Threads begin late, and so in another order than they were given work."""

    def submit(self, call: Any, /, *given: Any, **more: Any) -> Any:
        def late() -> Any:
            time.sleep(random.choice([0, 0.001, 0.004]))
            return call(*given, **more)

        return super().submit(late)


@pytest.mark.parametrize("number", range(5))
def test_no_tensor_is_read_over_before_it_is_written(two: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory was once taken in the order in which threads ran: a loaded machine wrote one tensor's bytes for another's."""
    plain = shards._bytes_of

    def slow(tensor: torch.Tensor) -> memoryview:
        time.sleep(random.choice([0, 0.002, 0.006]))  # the disk takes its time
        return plain(tensor)

    monkeypatch.setattr(shards, "ThreadPoolExecutor", Unlucky)
    monkeypatch.setattr(shards, "_bytes_of", slow)
    it = merge(two, ["e0", "e1"])
    (two / "made").mkdir()
    write_experts(it, two / "made")
    for w in it.wanted():
        assert torch.equal(load_file(two / "made/model.safetensors")[w.name], w.get()), w.name


def test_the_same_is_the_same_bit_by_bit() -> None:
    one = torch.tensor([1.0, 0.0, 3.0, 4.0, 5.0])
    assert shards.same(one, one.clone())
    assert not shards.same(one, torch.tensor([1.0, -0.0, 3.0, 4.0, 5.0]))
    assert not shards.same(one, torch.tensor([1.0, 0.0, 3.0, 4.0, 5.5]))
    assert not shards.same(one, one.to(torch.bfloat16))
    assert shards.same(one.to(torch.bfloat16), one.to(torch.bfloat16))
