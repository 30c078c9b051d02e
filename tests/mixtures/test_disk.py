"""Assembling, materialising, opening and saving mixtures."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.mixtures.built import lora_member, members, recipe, whole
from tests.tiny import V, expert_artifact, llama, write_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from coterie.errors import RequestError
from coterie.mixtures.load import load
from coterie.mixtures.outputs.outputs_mixture import OutputsMixture
from coterie.mixtures.outputs.outputs_place import materialise
from coterie.routing.output_routers import Linear
from coterie.store import Store

IDS = torch.arange(1, 21).reshape(2, 10)
LINEAR = {"kind": "linear", "features": ["tokens", "posterior"], "epochs": 1}


@pytest.fixture
def folder(store: Store, tiny_tokenizer: Path, tmp_path: Path) -> Path:
    seated = members(store, tiny_tokenizer, repeats=2)
    return materialise(whole(store, tiny_tokenizer, recipe(seated, LINEAR), seated), seated, tmp_path / "out" / "mix")


def test_opens_everywhere_with_the_same_answers(folder: Path) -> None:
    opened = [AutoModelForCausalLM.from_pretrained(folder), load(folder), OutputsMixture.from_pretrained(str(folder))]
    assert all(torch.equal(m.log_probs(IDS), opened[0].log_probs(IDS)) for m in opened)
    assert [s["name"] for s in opened[0].slots] == ["a", "a", "b", "b"]
    assert len(opened[0].experts) == 2
    assert opened[0].generation_config.eos_token_id == 0
    assert AutoTokenizer.from_pretrained(folder).decode([0]) == "<eos>"
    for expert in ("a", "b"):
        assert AutoModelForCausalLM.from_pretrained(folder / "experts" / expert).config.vocab_size == V


def test_a_moved_directory_opens(folder: Path, tmp_path: Path) -> None:
    before = load(folder).log_probs(IDS)
    moved = tmp_path / "elsewhere"
    shutil.move(folder, moved)
    shutil.rmtree(tmp_path / "out")
    assert torch.equal(load(moved).log_probs(IDS), before)


def test_the_store_keeps_each_expert_once(folder: Path, store: Store) -> None:
    """The artifact holds no weights of experts, and the directory holds hard links."""
    (mixture,) = (store.root / "mixtures").iterdir()
    names = {p.relative_to(mixture).as_posix() for p in mixture.rglob("*") if p.is_file()}
    assert names == {
        "manifest.json",
        "config.json",
        "router.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for file in folder.rglob("*.safetensors"):
        assert file.stat().st_nlink == 2


def test_materialising_again_changes_nothing_and_foreign_files_stay(
    store: Store, tiny_tokenizer: Path, tmp_path: Path, folder: Path
) -> None:
    seated = members(store, tiny_tokenizer, repeats=2)
    mixture = whole(store, tiny_tokenizer, recipe(seated, LINEAR), seated)
    stamp = {p: p.stat().st_ino for p in folder.rglob("*")}
    materialise(mixture, seated, folder)
    assert stamp == {p: p.stat().st_ino for p in folder.rglob("*")}
    other = members(store, tiny_tokenizer, ("c", "d"))
    materialise(whole(store, tiny_tokenizer, recipe(other), other), other, folder)
    assert sorted(p.name for p in (folder / "experts").iterdir()) == ["c", "d"]
    (folder / "mine.txt").write_text("notes")
    with pytest.raises(RequestError, match="did not put there"):
        materialise(mixture, seated, folder)
    assert (folder / "mine.txt").exists()


def test_lora_experts_are_opened_on_their_base(store: Store, tiny_tokenizer: Path, tmp_path: Path) -> None:
    seated = [*members(store, tiny_tokenizer, ("a",)), lora_member(store, tiny_tokenizer)]
    target = materialise(whole(store, tiny_tokenizer, recipe(seated), seated), seated, tmp_path / "mix")
    m = load(target)
    with torch.no_grad():
        with m.experts[1].disable_adapter():
            base = m.experts[1](IDS).logits
        assert not torch.allclose(base, m.experts[1](IDS).logits)
    m.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "experts" / "low" / "adapter_model.safetensors").is_file()
    assert torch.equal(load(tmp_path / "saved").log_probs(IDS), m.log_probs(IDS))
    assert m.nll(IDS).shape == (2, 9)
    assert m.generate(IDS, max_new_tokens=3, do_sample=False).shape[1] > 10


def test_an_expert_opens_as_a_mixture_of_itself(store: Store, tiny_tokenizer: Path, tmp_path: Path) -> None:
    (member,) = members(store, tiny_tokenizer, ("a",))
    m = load(member.artifact.path)
    with torch.no_grad():
        assert torch.allclose(m.log_probs(IDS), m.experts[0](IDS).logits.log_softmax(-1), atol=1e-6)
    assert torch.equal(m.weights(IDS), torch.ones(2, 10, 1))
    assert m.complete("the cat", max_new_tokens=3) == m.complete(["the cat"], max_new_tokens=3)[0]
    low = lora_member(store, tiny_tokenizer)
    assert low.base is not None
    assert load(low.artifact.path, base=low.base.path).nll(IDS).isfinite().all()
    with pytest.raises(RequestError, match="needs the model it rests on"):
        load(low.artifact.path)
    with pytest.raises(RequestError, match="would be missing"):
        load(low.artifact.path, base=low.base.path).save_pretrained(tmp_path / "saved")


def test_different_tokenizers_are_refused(store: Store, tiny_tokenizer: Path, tmp_path: Path) -> None:
    other = write_tokenizer(tmp_path / "other", extra=["<pad>"])
    seated = members(store, tiny_tokenizer, ("a",))
    seated.append(type(seated[0])("b", expert_artifact(store, "b", llama(9), other)))
    with pytest.raises(RequestError, match="experts 'a' and 'b' have different tokenizers") as error:
        whole(store, tiny_tokenizer, recipe(seated), seated)
    assert "is 1" in str(error.value)
    assert "train both with one tokenizer" in str(error.value)


def test_different_vocabularies_are_refused(store: Store, tiny_tokenizer: Path) -> None:
    seated = members(store, tiny_tokenizer, ("a",))
    seated.append(type(seated[0])("b", expert_artifact(store, "b", llama(9, vocab_size=V + 8), tiny_tokenizer)))
    with pytest.raises(RequestError, match="experts 'a' and 'b' have different vocabularies"):
        whole(store, tiny_tokenizer, recipe(seated), seated)


def test_strict_needs_to_know_the_dates(store: Store, tiny_tokenizer: Path) -> None:
    seated = members(store, tiny_tokenizer)
    seated[1] = replace(seated[1], knowledge=None)
    with pytest.raises(RequestError, match="that of 'b' is unknown"):
        whole(store, tiny_tokenizer, recipe(seated, eligible="strict"), seated)


def test_nothing_missing_nothing_unexpected(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o755)
    (copy / "manifest.json").unlink()  # else all of it is damage
    router, expert = copy / "router.safetensors", copy / "experts" / "a" / "model.safetensors"
    whole_router, whole_expert = load_file(router), load_file(expert)

    def refused(file: Path, tensors: dict, match: str) -> None:
        good = file.read_bytes()
        save_file(tensors, file)
        with pytest.raises(RequestError, match=match):
            load(copy)
        file.write_bytes(good)

    refused(router, {k: v for k, v in whole_router.items() if k != "bias_U"}, "router's parameters")
    refused(router, {**whole_router, "more": torch.zeros(1)}, "router's parameters")
    refused(router, {**whole_router, "bias_U": torch.zeros(3)}, "router's parameters")
    refused(expert, {k: v for k, v in whole_expert.items() if "norm" not in k}, "missing")
    refused(expert, {**whole_expert, "more": torch.zeros(1)}, "unexpected")
    load(copy)
    router.unlink()
    with pytest.raises(RequestError, match="router's parameters"):
        load(copy)


def test_a_missing_expert_is_named(folder: Path, store: Store, tmp_path: Path) -> None:
    (mixture,) = (store.root / "mixtures").iterdir()
    with pytest.raises(RequestError, match="the expert 'a' is not beside the mixture"):
        load(mixture)
    with pytest.raises(RequestError, match="no such directory"):
        load(tmp_path / "nothing")
    with pytest.raises(RequestError, match="no model is here"):
        load(tmp_path)


def test_paths_outside_are_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o755)
    (copy / "manifest.json").unlink()  # else all of it is damage
    config = json.loads((copy / "config.json").read_text())
    config["experts"][0]["dir"] = "../out/mix/experts/a"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(RequestError, match="points outside"):
        load(copy)


def test_options_that_mean_nothing_are_errors(folder: Path) -> None:
    assert AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cpu").dtype == torch.bfloat16
    with pytest.raises(RequestError, match="quantization_config has no meaning"):
        OutputsMixture.from_pretrained(folder, quantization_config={"bits": 4})


def test_renaming_and_policy_refit_nothing(store: Store, tiny_tokenizer: Path) -> None:
    """A router is fitted once for a policy's selection and for names; its own settings and the seats matter."""
    seated = members(store, tiny_tokenizer)

    def routers() -> int:
        return len(list((store.root / "routers").iterdir()))

    whole(store, tiny_tokenizer, recipe(seated, LINEAR), seated)
    whole(store, tiny_tokenizer, recipe(seated, {**LINEAR, "top_k": 1}), seated)
    renamed = [replace(seat, name=seat.name * 2, slots=()) for seat in seated]
    whole(store, tiny_tokenizer, recipe(renamed, LINEAR), renamed)
    assert routers() == 1
    whole(store, tiny_tokenizer, recipe(seated, {**LINEAR, "learning_rate": 0.5}), seated)
    whole(store, tiny_tokenizer, recipe(seated, {**LINEAR, "temperature": 0.5}), seated)
    seated[0] = replace(seated[0], slots=seated[0].slots * 3)
    whole(store, tiny_tokenizer, recipe(seated, LINEAR), seated)
    assert routers() == 4
    assert Linear(**LINEAR).top_k is None
