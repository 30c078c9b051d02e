"""Stock libraries on a mixture, with no code of ours: PEFT, the Trainer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.tiny import V, gpt2, llama
from transformers import Trainer, TrainingArguments

from coterie.mixtures.load import combine, load
from coterie.mixtures.outputs.outputs_mixture import OutputsMixture
from coterie.routing.output_routers import Linear


@pytest.fixture
def m() -> OutputsMixture:
    return combine({"a": llama(1), "b": llama(2), "c": gpt2(3)}, ["a", "b", "b", "c"], Linear(kind="linear"))


def test_peft_adapts_every_expert(m: OutputsMixture) -> None:
    ids = torch.randint(1, V, (2, 8))
    before = m.log_probs(ids)
    adapted = get_peft_model(m, LoraConfig(r=2, target_modules=["q_proj", "c_attn"], task_type="CAUSAL_LM"))
    assert torch.allclose(adapted(input_ids=ids).logits, before, atol=1e-5)
    adapted(input_ids=ids, labels=ids).loss.backward()
    trainable = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    assert {n.split("experts.")[1][0] for n in trainable} == {"0", "1", "2"}
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in trainable.items() if "lora_B" in n)
    assert adapted.generate(input_ids=ids, max_new_tokens=3, do_sample=False, eos_token_id=None).shape == (2, 11)


def test_the_trainer_trains_and_saves_it(m: OutputsMixture, tmp_path: Path) -> None:
    row = torch.randint(1, V, (8,))
    rows = [{"input_ids": row, "labels": row}] * 8
    m.requires_grad_(False)
    m.router.requires_grad_(True)
    frozen = {n: p.clone() for n, p in m.experts.named_parameters()}
    settings = TrainingArguments(
        str(tmp_path),
        max_steps=3,
        learning_rate=0.1,
        report_to=[],
        use_cpu=True,
        save_steps=3,
        disable_tqdm=True,
        logging_strategy="no",
    )
    before = m(row[None], labels=row[None]).loss.item()
    Trainer(m, settings, train_dataset=rows).train()
    after = load(tmp_path / "checkpoint-3")
    assert after(row[None], labels=row[None]).loss.item() < before
    assert torch.equal(after.log_probs(row[None]), m.eval().log_probs(row[None]))
    assert all(torch.equal(p, frozen[n]) for n, p in m.experts.named_parameters())
