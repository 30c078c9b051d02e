"""Train, mix, export, open in a process that never imports coterie: the same log-probabilities, on a real bf16 checkpoint.

Few tokens, as what is tested is not what is learned. Outputs and adapters have no standard checkpoint of their own: there
the stock process opens each expert, as a model or a PEFT adapter, and does the mixing by hand.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.run.small import WORDS, write_corpus
from transformers import AutoTokenizer

import coterie
from coterie.corpora.conversations import Renderer
from coterie.errors import RequestError
from coterie.mixtures.export.write_checkpoint import export
from coterie.models import device
from coterie.models.weight_precision import frozen_precision

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

STOCK = """
import sys
sys.modules["coterie"] = None  # an import of it fails
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

ids = load_file(sys.argv[1])["ids"]
def opened(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
def log_probs(model):
    with torch.no_grad():
        return model(ids).logits.log_softmax(-1)
def answer(logp):
    save_file({"logp": logp}, sys.argv[2])
"""

AVERAGE = "answer(torch.stack(each).logsumexp(0) - torch.tensor(2.0).log())"


def stock(code: str, ids_BT: torch.Tensor, folder: Path) -> torch.Tensor:
    """What a process says that cannot import coterie."""
    save_file({"ids": ids_BT}, folder / "ids.safetensors")
    command = [sys.executable, "-c", STOCK + code, str(folder / "ids.safetensors"), str(folder / "logp.safetensors")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": ""})
    return load_file(folder / "logp.safetensors")["logp"]


@pytest.fixture(scope="module")
def run(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("real")
    corpora = {}
    for i, (name, words) in enumerate(WORDS.items()):
        path = write_corpus(home / f"{name}.jsonl", words, 24, i)
        corpora[name] = {"path": str(path), "text": "text", "id": "id", "split": {"valid": 0.2, "test": 0.2}}
    lora = {"kind": "lora", "lora": {"r": 4}, "train": {"learning_rate": 1e-3}}
    asked = {
        "name": "real",
        "sequence_length": 32,
        "base": {"path": str(real_model)},
        "corpora": corpora,
        "train": {"tokens": 128, "batch_size": 2, "learning_rate": 1e-4, "precision": "fp32"},
        "experts": [
            *({"name": f"{name}-ffn", "corpus": name, "kind": "ffn"} for name in WORDS),
            *({"name": f"{name}-low", "corpus": name, **lora} for name in WORDS),
        ],
        "mixtures": [
            {"name": "merged", "at": "layers", "slots": ["*-ffn"], "router": {"kind": "ridge", "top_k": 1}},
            {"name": "whole", "at": "outputs", "slots": ["*-ffn"]},
            {"name": "low", "at": "outputs", "slots": ["*-low"]},
            {"name": "stacked", "at": "adapters", "slots": ["*-low"]},
        ],
        "evaluation": [{"name": "losses", "corpora": ["fruit"], "bootstrap": 20}],
    }
    return coterie.run(asked, store=home / "store", out=home / "out")


@pytest.fixture(scope="module")
def ids_BT(run: Any) -> torch.Tensor:
    tokenizer = run.mixtures["merged"].tokenizer
    return tokenizer("the ripe apple fell into the basket, and the saw cut the bench", return_tensors="pt").input_ids


def apart(mixture: Any, ids_BT: torch.Tensor, logp_BTV: torch.Tensor) -> float:
    return float((mixture.log_probs(ids_BT) - logp_BTV).abs().max())


def test_experts_of_a_bf16_base_merge_and_are_evaluated(run: Any) -> None:
    files = (run.out / "mixtures/merged/experts").glob("model*.safetensors")
    assert {t.dtype for f in files for t in load_file(f).values()} == {torch.bfloat16}
    facts = json.loads((run.out / "experts/fruit-ffn/facts.json").read_text())
    assert facts["written"] == "bf16"
    for model, groups in run.summary["evaluation"]["losses"].items():
        assert 0 < groups["all"]["nll"] < 10, model


def test_the_plan_says_in_which_precision_scores_are_computed(run: Any, real_model: Path) -> None:
    where = device.pick()
    expected = {device.numerics(where, frozen_precision("auto", [real_model], where))}
    kinds = [s for s in run.plan if s.kind == "scores" and not s.label.startswith(("scores of whole", "scores of low"))]
    assert {s.numerics for s in kinds} == expected


def test_a_date_that_can_have_no_effect_is_an_error(run: Any) -> None:
    for name in ("merged", "stacked"):
        with pytest.raises(RequestError, match="a date has no effect"):
            run.mixtures[name].complete("the ripe apple", time="1990-01-01", max_new_tokens=2)


def test_layers(run: Any, ids_BT: torch.Tensor, tmp_path: Path) -> None:
    done = export(run.out / "mixtures/merged", tmp_path / "mixtral")
    assert done.format == "mixtral"
    assert done.difference < 1e-3
    assert done.rounding is not None
    assert done.rounding > 0
    here = stock(f"answer(log_probs(opened({str(tmp_path / 'mixtral')!r})))", ids_BT, tmp_path)
    mixture = coterie.load(run.out / "mixtures/merged", dtype=torch.float32)
    for gate in mixture.router:
        gate.weight.data = gate.weight.data.bfloat16().float()  # as written
    assert apart(mixture, ids_BT, here) < 1e-3


def test_outputs(run: Any, ids_BT: torch.Tensor, tmp_path: Path) -> None:
    folders = [str(run.out / "experts" / f"{name}-ffn") for name in WORDS]
    code = f"each = [log_probs(opened(f)) for f in {folders}]\n{AVERAGE}"
    mixture = coterie.load(run.out / "mixtures/whole", dtype=torch.float32)
    assert apart(mixture, ids_BT, stock(code, ids_BT, tmp_path)) < 1e-3


def test_outputs_of_adapters(run: Any, real_model: Path, ids_BT: torch.Tensor, tmp_path: Path) -> None:
    folders = [str(run.out / "experts" / f"{name}-low") for name in WORDS]
    code = f"""
from peft import PeftModel
each = [log_probs(PeftModel.from_pretrained(opened({str(real_model)!r}), f).eval()) for f in {folders}]
{AVERAGE}
"""
    mixture = coterie.load(run.out / "mixtures/low", dtype=torch.float32)
    assert apart(mixture, ids_BT, stock(code, ids_BT, tmp_path)) < 1e-3


def test_adapters(run: Any, real_model: Path, ids_BT: torch.Tensor, tmp_path: Path) -> None:
    """Equal weights over adapters are one adapter of PEFT: their factors side by side, at half the scale each."""
    one, two = [str(run.out / "experts" / f"{name}-low") for name in WORDS]
    code = f"""
from peft import PeftModel
model = PeftModel.from_pretrained(opened({str(real_model)!r}), {one!r}, adapter_name="one")
model.load_adapter({two!r}, adapter_name="two")
model.add_weighted_adapter(["one", "two"], [0.5, 0.5], "both", combination_type="cat")
model.set_adapter("both")
answer(log_probs(model.eval()))
"""
    mixture = coterie.load(run.out / "mixtures/stacked", dtype=torch.float32)
    assert apart(mixture, ids_BT, stock(code, ids_BT, tmp_path)) < 1e-3


def test_conversations_are_those_of_the_models_own_template(real_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    contents = ["What is 2 + 2?", "4.", "And  2 + 3?\n", "  5, if I am right.\n\nYes."]
    messages = [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]
    ids, learned = Renderer(tokenizer).tokens([(m["role"], m["content"]) for m in messages])
    assert ids == tokenizer.apply_chat_template(messages, return_dict=False)
    said = tokenizer.decode([i for i, own in zip(ids, learned, strict=True) if own])
    assert said.replace(" ", "") == "4.<|im_end|>5, if I am right.\n\nYes.<|im_end|>".replace(" ", "")
    asked = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, return_dict=False)
    assert Renderer(tokenizer).question(contents[0]) == asked
