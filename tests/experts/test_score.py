"""Scores: the model's own log-probabilities, once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests.counting import forward_passes
from tests.experts.making import LENGTH, base, blocks, settings

from coterie.corpora.blocks import Blocks
from coterie.experts import scores as scoring
from coterie.experts.expert_actions import score_expert, train_expert
from coterie.experts.training_request import Request
from coterie.models.open import open_model
from coterie.store import Store

torch.set_num_threads(1)


def test_scores_are_each_document_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "TOKENS_AT_ONCE", 5 * LENGTH)  # batches of 5, the last one short
    expert, source = base(store), blocks(store, 13, fill=0.5)
    made = score_expert(store, expert, source)
    logp = load_file(made.file("scores.safetensors"))["logp"]
    packed, model = Blocks.open(source), open_model(expert)
    assert logp.shape == (13, LENGTH - 1)
    assert logp.dtype == np.float32
    expected = np.zeros_like(logp)
    with torch.no_grad():
        for row in range(13):
            for number in np.unique(packed.document[row][packed.document[row] >= 0]):
                at = np.flatnonzero(packed.document[row] == number)
                ids_T = torch.from_numpy(packed.ids[row][at].astype(np.int64))
                logp_TV = model(input_ids=ids_T[None]).logits[0].log_softmax(-1)
                for t in range(1, len(at)):
                    expected[row, at[t] - 1] = logp_TV[t - 1, ids_T[t]]
    np.testing.assert_allclose(logp, expected, atol=1e-5)
    counted = packed.target[:, 1:].astype(bool)
    assert made.facts["tokens"] == counted.sum()
    assert made.facts["nll"] == pytest.approx(-expected[counted].mean(), abs=1e-5)
    assert (logp[packed.position[:, 1:] == 0] == 0).all()


def test_an_expert_is_run_once_and_never_again(store: Store) -> None:
    expert, source = base(store), blocks(store, 13)
    first = score_expert(store, expert, source)
    with forward_passes() as passes:
        assert score_expert(Store(store.root), expert, source, label="renamed").digest == first.digest
        assert not passes
        score_expert(store, expert, blocks(store, 14))
        assert passes


def test_an_adapter_is_scored_on_its_base(store: Store) -> None:
    start, source = base(store), blocks(store, 13)
    adapter = train_expert(Request(store, start=start, blocks=[source], kind="lora", train=settings(), seed=1))
    adapted, plain = score_expert(store, adapter, source, base=start), score_expert(store, start, source)
    assert adapted.facts["nll"] < plain.facts["nll"]


def test_scores_do_not_depend_on_the_batch(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    expert, source = base(store, "qwen3"), blocks(store, 13)
    first = load_file(score_expert(store, expert, source).file("scores.safetensors"))["logp"]
    monkeypatch.setattr(scoring, "TOKENS_AT_ONCE", 1)
    other = Store(store.root.parent / "other")
    again = load_file(score_expert(other, expert, source).file("scores.safetensors"))["logp"]
    np.testing.assert_allclose(again, first, atol=1e-5)
