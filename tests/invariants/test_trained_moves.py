"""Invariant 6: everything declared trainable has a gradient and moves, everything else is bit-identical; else nothing is
published. For joint training, co-adaptation and tuned mixtures the same check is tested beside them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from tests.experts.making import base, blocks, settings

from coterie.errors import RequestError, WorkError
from coterie.experts import loop
from coterie.experts.expert_actions import train_expert
from coterie.experts.training_request import Request
from coterie.models.checkpoint import checkpoint
from coterie.models.lora_settings import Lora
from coterie.models.open import open_model
from coterie.store import Artifact, Store

torch.set_num_threads(1)


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(next(artifact.path.glob("*.safetensors")))


def test_ffn_moves_the_feed_forward_weights_alone(store: Store) -> None:
    start = base(store)
    expert = train_expert(Request(store, start=start, blocks=[blocks(store)], kind="ffn", train=settings(), seed=1))
    before, after = weights(start), weights(expert)
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]) == (".mlp." not in name), name
    assert checkpoint(expert.path)


def test_lora_is_a_stock_adapter_and_the_base_stays(store: Store) -> None:
    """Traps 8 and 9: every tensor of the adapter has had a gradient, moved and was saved; the base is what it was."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    start, source = base(store), blocks(store)
    before = {name: tensor.clone() for name, tensor in weights(start).items()}
    expert = train_expert(
        Request(store, start=start, blocks=[source], kind="lora", lora=Lora(r=3, alpha=6), train=settings(), seed=1)
    )
    saved = weights(expert)
    assert len(saved) == 2 * 2 * 7  # A and B, two layers, seven linears
    assert all(tensor.any() for tensor in saved.values())
    assert {f for f in expert.files if f.startswith("adapter")} == {"adapter_config.json", "adapter_model.safetensors"}
    stock = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(start.path), str(expert.path)).eval()
    ours = open_model(expert, base=start)
    ids_BT = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(stock(ids_BT).logits, ours(ids_BT).logits)
        assert not torch.equal(stock(ids_BT).logits, open_model(start)(ids_BT).logits)
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(start).items())
    longer = train_expert(
        Request(
            store, start=expert, base=start, blocks=[source], kind="lora", lora=Lora(r=3, alpha=6), train=settings(), seed=2
        )
    )
    assert longer.facts["base"] == expert.facts["base"]
    assert not torch.equal(next(iter(weights(longer).values())), next(iter(saved.values())))
    with pytest.raises(RequestError, match="another shape"):
        train_expert(
            Request(store, start=expert, base=start, blocks=[source], kind="lora", lora=Lora(r=4), train=settings(), seed=2)
        )
    with pytest.raises(RequestError, match="cannot start from an adapter"):
        train_expert(Request(store, start=expert, base=start, blocks=[source], kind="full", train=settings(), seed=2))


def test_one_step_of_lora_moves_b(store: Store) -> None:
    expert = train_expert(
        Request(
            store,
            start=base(store),
            blocks=[blocks(store)],
            kind="lora",
            train=settings(tokens=20, weight_decay=0.0),
            seed=1,
        )
    )
    assert expert.facts["steps"] == 1
    assert all(tensor.any() for name, tensor in weights(expert).items() if "lora_B" in name)


def test_a_frozen_parameter_that_moves_is_caught(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = loop.Seeds.on_step_begin

    def meddling(self, args, state, control, model=None, **rest):
        model.model.norm.weight.data[0] += 1e-6
        plain(self, args, state, control, **rest)

    monkeypatch.setattr(loop.Seeds, "on_step_begin", meddling)
    with pytest.raises(WorkError, match="frozen parameter changed"):
        train_expert(Request(store, start=base(store), blocks=[blocks(store)], kind="ffn", train=settings(), seed=1))
    assert not list((store.root / "experts").glob("*"))


def test_a_parameter_without_gradient_is_caught(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weight decay moves it, and it has learned nothing."""
    plain = loop.Loop.compute_loss

    def severed(self, model, inputs, *args, **rest):
        weight = model.model.layers[0].mlp.up_proj.weight
        if not hasattr(self, "hook"):
            self.hook = weight.register_hook(torch.zeros_like)
        return plain(self, model, inputs, *args, **rest)

    monkeypatch.setattr(loop.Loop, "compute_loss", severed)
    with pytest.raises(WorkError, match="never had a gradient") as caught:
        train_expert(Request(store, start=base(store), blocks=[blocks(store)], train=settings(), seed=1))
    assert caught.value.where == "model.layers.0.mlp.up_proj.weight"


def test_steps_too_small_to_move_are_caught(store: Store) -> None:
    with pytest.raises(WorkError, match="did not change"):
        train_expert(Request(store, start=base(store), blocks=[blocks(store)], train=settings(learning_rate=1e-12), seed=1))
