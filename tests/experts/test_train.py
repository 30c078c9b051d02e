"""Training against a slow obvious loop, what moves and what does not, reuse, and the Trainer's traps."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.experts.making import LENGTH, base, blocks, settings

from coterie.corpora.blocks import Blocks
from coterie.corpora.order import Order
from coterie.errors import RequestError
from coterie.experts import loop, training
from coterie.experts.expert_actions import score_expert, train_expert
from coterie.experts.scores import mean_nll
from coterie.experts.train_settings import Train
from coterie.experts.training_request import Request
from coterie.experts.training_rows import Rows
from coterie.models.open import open_model
from coterie.store import Artifact, DryStore, Store

torch.set_num_threads(1)


def weights(artifact: Artifact) -> dict[str, torch.Tensor]:
    return load_file(next(artifact.path.glob("*.safetensors")))


def lines(artifact: Artifact) -> list[dict]:
    return [json.loads(line) for line in artifact.file("metrics.jsonl").read_text().splitlines()]


def plain_loop(start: Artifact, sources: list[Blocks], settings: Train, seed: int) -> tuple[dict, list[float]]:
    """Every document by itself, gradients of the token mean over the whole step, one step after another."""
    model = open_model(start).train()
    order = Order([s.tokens_per_block for s in sources], None, seed, tokens=settings.tokens)
    rows_a_step = settings.batch_size * settings.accumulation
    steps = -(-len(order) // rows_a_step)
    adamw = training.optimizer(model, settings)
    losses = []
    for step in range(steps):
        for group in adamw.param_groups:
            group["lr"] = settings.learning_rate * training.factor(step, steps, settings)
        total, count = torch.zeros(()), 0
        for i in range(step * rows_a_step, min((step + 1) * rows_a_step, len(order))):
            source, b = sources[order.source[i]], order.block[i]
            for number in np.unique(source.document[b][source.document[b] >= 0]):
                at = np.flatnonzero(source.document[b] == number)
                ids_T = torch.from_numpy(source.ids[b][at].astype(np.int64))
                target_T = torch.from_numpy(source.target[b][at].astype(bool))
                logp_TV = model(input_ids=ids_T[None]).logits[0].log_softmax(-1)
                for t in range(1, len(ids_T)):
                    if target_T[t]:
                        total = total - logp_TV[t - 1, ids_T[t]]
                        count += 1
        loss = total / count
        losses.append(loss.item())
        adamw.zero_grad()
        loss.backward()
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        adamw.step()
    return {name: p.detach() for name, p in model.named_parameters()}, losses


@pytest.mark.parametrize("init", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("changes", [{"accumulation": 2, "batch_size": 3}, {"schedule": "wsd", "clip": 0.0}])
def test_training_is_the_plain_loop(store: Store, init: str, changes: dict) -> None:
    """Packed, batched and accumulated training equals each document alone: traps 2 (accumulation), 5 (documents leak)
    and 6 (labels, loss and shift) would each move the weights."""
    start, sources = base(store, init), [blocks(store, 15), blocks(store, 9, seed=1, masked=0.9)]
    asked = settings(tokens=400, log_every=1, **changes)
    expert = train_expert(Request(store, start=start, blocks=sources, train=asked, seed=7))
    expected, losses = plain_loop(start, [Blocks.open(s) for s in sources], asked, 7)
    found = weights(expert)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")
    np.testing.assert_allclose([line["loss"] for line in lines(expert)], losses, atol=2e-6)
    moved = max((found[n] - t).abs().max() for n, t in weights(start).items())
    assert moved > 1e-3


def test_batch_times_accumulation(store: Store) -> None:
    """8 rows at once are 4 x 2 and 2 x 4, although rows differ much in how many targets they have."""
    source = blocks(store, 24, fill=0.3, masked=0.7)
    per_row = Blocks.open(source).target.sum(1)
    assert per_row.max() > 3 * max(per_row.min(), 1)
    made = [
        weights(
            train_expert(
                Request(
                    store,
                    start=base(store),
                    blocks=[source],
                    train=settings(tokens=500, batch_size=b, accumulation=8 // b),
                    seed=1,
                )
            )
        )
        for b in (8, 4, 2)
    ]
    for other in made[1:]:
        for name, tensor in made[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-6)


def test_the_order_is_followed_row_by_row(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Map-style data (trap 4): each row of the order is seen once, in order, over several passes."""
    sources = [blocks(store, 7), blocks(store, 5, seed=1)]
    opened = [Blocks.open(s) for s in sources]
    seen: list[np.ndarray] = []
    plain = loop.Loop.training_step

    def noted(self, model, inputs, *args, **rest):
        seen.extend(inputs["input_ids"].numpy())
        return plain(self, model, inputs, *args, **rest)

    monkeypatch.setattr(loop.Loop, "training_step", noted)
    asked = settings(tokens=None, epochs=2.5, batch_size=3, accumulation=2)
    train_expert(Request(store, start=base(store), blocks=sources, train=asked, seed=5))
    order = Order([s.tokens_per_block for s in opened], None, 5, epochs=2.5)
    assert len(seen) == len(order)
    for ids_T, s, b in zip(seen, order.source, order.block, strict=True):
        assert (ids_T == opened[s].ids[b]).all()
    rows = Rows(opened, order, mask=False)
    assert len(rows) == len(order)
    assert rows.tokens_after(6)[-1] == order.tokens


def test_weights_of_the_mix_are_shares(store: Store) -> None:
    sources = [blocks(store, 20), blocks(store, 20, seed=1)]
    one, same, other = (
        train_expert(Request(store, start=base(store), blocks=sources, weights=w, train=settings(), seed=1))
        for w in ([1, 3], [2, 6], [3, 1])
    )
    assert one.digest == same.digest
    assert one.digest != other.digest


def test_the_budget_in_tokens_and_the_figures(store: Store) -> None:
    expert = train_expert(Request(store, start=base(store), blocks=[blocks(store, 15)], train=settings(tokens=400), seed=1))
    facts, log = expert.facts, lines(expert)
    assert 400 <= facts["tokens"] < 400 + LENGTH
    assert facts["steps"] == log[-1]["step"]
    assert facts["loss"] == log[-1]["loss"]
    assert log[-1]["tokens"] == facts["tokens"]
    assert [line["step"] for line in log[:-1]] == list(range(3, log[-1]["step"], 3))
    for line in log:
        expected = 3e-3 * training.factor(line["step"] - 1, facts["steps"], settings(tokens=400))
        assert line["learning_rate"] == pytest.approx(expected)
    assert facts["trained_parameters"] == facts["parameters"] == sum(t.numel() for t in weights(expert).values())
    assert set(log[0]) == {"step", "tokens", "loss", "learning_rate", "grad_norm"}
    assert "seconds" in expert.made
    assert not any(str(store.root) in expert.file(n).read_text() for n in expert.files if n.endswith(("json", "jsonl")))


@pytest.mark.parametrize(("size", "key"), [({"context": LENGTH // 2}, "max_position"), ({}, "vocab_size")])
def test_blocks_that_do_not_fit_the_model_are_refused(store: Store, size: dict, key: str) -> None:
    start, source = base(store, "gpt2", **size), blocks(store, fill=1.0, longest=LENGTH)
    if not size:
        other = store.root.parent / "other"
        other.mkdir()
        arrays = load_file(source.file("blocks.safetensors"))
        save_file({**arrays, "ids": arrays["ids"] + 1}, other / "blocks.safetensors")
        source = Artifact("blocks", "other", other, {"blocks.safetensors": "other"})
    for refused in (
        lambda: train_expert(Request(store, start=start, blocks=[source], train=settings(), seed=1)),
        lambda: score_expert(store, start, source),
    ):
        with pytest.raises(RequestError, match="do not fit") as caught:
            refused()
        assert key in caught.value.where


def test_one_epoch_if_no_budget_is_given(store: Store) -> None:
    source = blocks(store, 15)
    expert = train_expert(Request(store, start=base(store), blocks=[source], train=settings(tokens=None), seed=1))
    assert expert.facts["tokens"] == source.facts["tokens"]


# Precision, memory, tracking


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_precision_is_the_one_asked_for(store: Store, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the run before in this process had another one."""
    dtypes: set[torch.dtype] = set()
    plain = torch.nn.functional.linear

    def noted(given, weight, *rest):
        out = plain(given, weight, *rest)
        dtypes.add(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.functional, "linear", noted)
    other = "bf16" if precision == "fp32" else "fp32"
    train_expert(
        Request(store, start=base(store), blocks=[blocks(store)], train=settings(tokens=60, precision=other), seed=1)
    )
    dtypes.clear()
    expert = train_expert(
        Request(store, start=base(store), blocks=[blocks(store)], train=settings(tokens=60, precision=precision), seed=1)
    )
    assert expert.facts["precision"] == precision
    assert (torch.bfloat16 in dtypes) == (precision == "bf16")
    assert all(t.dtype == torch.float32 for t in weights(expert).values())


def test_what_bf16_changes_is_bounded(store: Store) -> None:
    """Autocast rounds products to 8 bits: the loss moves by less than 1 %, a step by less than its own length."""
    start, source, valid = base(store), blocks(store), blocks(store, 10, seed=5)
    fp32, bf16 = (
        train_expert(Request(store, start=start, blocks=[source], valid=valid, train=settings(precision=p), seed=1))
        for p in ("fp32", "bf16")
    )
    assert fp32.digest != bf16.digest
    assert bf16.facts["loss"] == pytest.approx(fp32.facts["loss"], rel=0.01)
    for name, tensor in weights(start).items():
        moved, differs = ((weights(e)[name] - other) for e, other in ((fp32, tensor), (bf16, weights(fp32)[name])))
        assert differs.norm() < 0.5 * moved.norm(), name


def test_gradient_checkpointing_changes_nothing(store: Store) -> None:
    start, source = base(store), blocks(store)
    plain, saving = (
        weights(train_expert(Request(store, start=start, blocks=[source], train=settings(gradient_checkpointing=g), seed=1)))
        for g in (False, True)
    )
    for name, tensor in plain.items():
        torch.testing.assert_close(saving[name], tensor, rtol=0, atol=1e-6)


def test_tracking_backends(store: Store) -> None:
    source = blocks(store)
    with pytest.raises(RequestError, match="tracking backend"):
        train_expert(
            Request(store, start=base(store), blocks=[source], train=settings(report_to=("no-such-backend",)), seed=1)
        )
    pytest.importorskip("tensorboard")
    tracked = train_expert(
        Request(store, start=base(store), blocks=[source], train=settings(report_to=("tensorboard",)), seed=1, label="x")
    )
    assert list((store.root / "tracking").rglob("events.out*"))
    other = Store(store.root.parent / "other")
    assert (
        train_expert(Request(other, start=base(other), blocks=[source], train=settings(), seed=1)).digest == tracked.digest
    )


# Held-out loss, early stopping, snapshots


def test_the_held_out_loss_is_that_of_the_scores(store: Store) -> None:
    valid = blocks(store, 6, seed=9)
    expert = train_expert(Request(store, start=base(store), blocks=[blocks(store)], valid=valid, train=settings(), seed=1))
    scores = score_expert(store, expert, valid)
    assert expert.facts["loss"] == pytest.approx(scores.facts["nll"], abs=1e-6)
    assert expert.facts["loss"] == pytest.approx(mean_nll(open_model(expert), Blocks.open(valid)), abs=1e-7)


def test_early_stopping_keeps_the_best_weights(store: Store) -> None:
    valid = blocks(store, 6, seed=9)
    rule = {"every": 100, "patience": 2}
    asked = settings(tokens=5000, learning_rate=0.05, schedule="constant", early_stopping=rule)
    expert = train_expert(Request(store, start=base(store), blocks=[blocks(store)], valid=valid, train=asked, seed=1))
    held_out = [(line["eval_loss"], line["step"]) for line in lines(expert) if "eval_loss" in line]
    best = min(held_out)
    assert expert.facts["tokens"] < 4000
    assert expert.facts["best_step"] == best[1]
    assert len(held_out) - 1 - held_out.index(best) == 2
    assert expert.facts["loss"] == pytest.approx(best[0], abs=1e-7)
    assert mean_nll(open_model(expert), Blocks.open(valid)) == pytest.approx(best[0], abs=1e-7)
    with pytest.raises(RequestError, match="held-out"):
        train_expert(Request(store, start=base(store), blocks=[blocks(store)], train=asked, seed=1))


def test_a_snapshot_is_the_expert_that_was_trained_so_far(store: Store) -> None:
    source = blocks(store)
    plain = {"schedule": "constant", "warmup": 0.0}
    expert = train_expert(Request(store, start=base(store), blocks=[source], train=settings(snapshots=200, **plain), seed=1))
    listed = expert.facts["snapshots"]
    assert [entry["tokens"] // 200 for entry in listed] == [1, 2, 3]
    for entry in listed:
        snapshot = next(a for a in store.used.values() if a.digest == entry["digest"])
        assert snapshot.kind == "experts"
        assert snapshot.facts["tokens"] == entry["tokens"]
        shorter = train_expert(
            Request(store, start=base(store), blocks=[source], train=settings(**plain, tokens=entry["tokens"]), seed=1)
        )
        assert shorter.facts["steps"] == entry["step"]
        for name, tensor in weights(shorter).items():
            assert torch.equal(weights(snapshot)[name], tensor)
    again = Store(store.root)
    reused = train_expert(Request(again, start=base(again), blocks=[source], train=settings(snapshots=200, **plain), seed=1))
    assert reused.digest == expert.digest
    assert {entry["digest"] for entry in listed} <= {a.digest for a in again.used.values()}  # or prune would take them


# Reuse


def test_what_decides_the_expert_is_in_its_key_and_nothing_else(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    plain = loop.Loop.train
    monkeypatch.setattr(loop.Loop, "train", lambda self, **given: (runs.append(1), plain(self, **given))[1])
    plain_inputs = {"start": base(store), "blocks": [blocks(store)], "train": settings(tokens=60), "seed": 1}

    def make(**changes: object) -> str:
        return train_expert(Request(Store(store.root), **(plain_inputs | changes))).digest

    first = make()
    assert make(label="another name") == first
    assert make(train=settings(tokens=60, save_every=10, log_every=1, threads=1)) == first
    assert len(runs) == 1
    changed = [
        {"train": settings(tokens=60, learning_rate=1e-3)},
        {"train": settings(tokens=61)},
        {"seed": 2},
        {"kind": "ffn"},
        {"blocks": [blocks(store, seed=3)]},
        {"start": base(store, "gpt2")},
        {"valid": blocks(store, 5)},
    ]
    digests = {first} | {make(**change) for change in changed}
    assert len(digests) == len(changed) + 1
    assert len(runs) == len(changed) + 1


def test_a_start_with_other_logs_is_the_same_start(store: Store) -> None:
    start, source = base(store), blocks(store)
    first = train_expert(Request(store, start=start, blocks=[source], train=settings(tokens=60), seed=1))
    other = Artifact("experts", "other", start.path, {**start.files, "metrics.jsonl": "x", "facts.json": "y"})
    assert (
        train_expert(Request(store, start=other, blocks=[source], train=settings(tokens=60), seed=1)).digest == first.digest
    )


def test_a_dry_run_opens_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    dry = DryStore(store.root)
    monkeypatch.setattr("coterie.corpora.blocks.Blocks.open", lambda artifact: pytest.fail("opened"))
    expert = train_expert(Request(dry, start=base(dry), blocks=[blocks(dry)], train=settings(), seed=1, label="x"))
    assert expert.planned
    assert score_expert(dry, expert, blocks(dry)).planned
    assert [step.tokens for step in dry.steps.values() if step.kind == "experts"] == [700]


OTHER = {
    "tokens": 900,
    "epochs": 2.0,
    "batch_size": 2,
    "accumulation": 2,
    "learning_rate": 1e-4,
    "schedule": "wsd",
    "warmup": 0.2,
    "decay": 0.3,
    "floor": 0.2,
    "weight_decay": 0.2,
    "beta1": 0.8,
    "beta2": 0.99,
    "clip": 2.0,
    "precision": "bf16",
    "gradient_checkpointing": True,
    "early_stopping": {"patience": 2},
    "snapshots": 3,
}
"""Another value of each setting that decides what is trained."""


def test_an_expert_is_known_by_every_setting_that_decides_it() -> None:
    alike = {"save_every", "log_every", "report_to", "threads", "parallel", "processes"}
    assert OTHER.keys() | alike == Train.model_fields.keys()
    for name, value in OTHER.items():
        changed = Train(**({name: value} if name == "epochs" else {"tokens": 700, name: value}))
        assert changed.identity() != Train(tokens=700).identity(), name


def test_every_step_and_rank_draws_its_own_and_the_same_again() -> None:
    def drawn(seed: int, step: int, rank: int = 0) -> tuple[float, ...]:
        args = SimpleNamespace(process_index=rank, device=torch.device("cpu"))
        with torch.random.fork_rng():
            loop.Seeds(seed).on_step_begin(args, SimpleNamespace(global_step=step), None)
            return tuple(torch.rand(4).tolist())

    asked = [(seed, step, rank) for seed in (1, 2) for step in (0, 1, 11) for rank in (0, 1)]
    assert len({drawn(*how) for how in asked}) == len(asked)
    assert drawn(1, 11) == drawn(1, 11)


def test_randomness_and_threads_outside_are_left_alone(store: Store) -> None:
    start, source = base(store), blocks(store)
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    train_expert(Request(store, start=start, blocks=[source], train=settings(tokens=60, threads=2), seed=1))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.get_num_threads() == 1
