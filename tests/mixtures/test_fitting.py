"""The verb that fits a router: what it rests on, what it leaves out, what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.mixtures.built import DOCUMENTS, TIMES, blocks, members, recipe, scores, whole
from tests.tiny import blocks_artifact, tokenizer_artifact

from coterie import progress
from coterie.errors import WorkError
from coterie.mixtures.outputs.cached_scores import held_out_documents, open_scored, routed_nll
from coterie.mixtures.outputs.outputs_place import fit_router, routed
from coterie.mixtures.seats import eligibility
from coterie.store import Artifact, DryStore, Store

LINEAR = {"kind": "linear", "epochs": 3, "learning_rate": 0.1}


def fitted(store: Store, tokenizer: Path, spec: Any, seated: Any, valid: list[Artifact], seed: int = 0) -> Artifact:
    of_experts = [scores(store, seated, b) for b in valid]
    return fit_router(store, spec, seated, valid, of_experts, tokenizer_artifact(store, tokenizer), seed)


def test_same_request_same_bytes(tiny_tokenizer: Path, tmp_path: Path) -> None:
    digests = []
    for where in ("one", "two"):
        store = Store(tmp_path / where)
        seated = members(store, tiny_tokenizer)
        torch.manual_seed(len(digests))
        digests.append(fitted(store, tiny_tokenizer, recipe(seated, LINEAR), seated, [blocks(store)]).digest)
    assert digests[0] == digests[1]


def test_the_trace_and_what_was_learned(store: Store, tiny_tokenizer: Path) -> None:
    seated = members(store, tiny_tokenizer)
    router = fitted(store, tiny_tokenizer, recipe(seated, LINEAR), seated, [blocks(store)])
    record = json.loads(router.file("router.json").read_text())
    assert record["tokens"] == sum(len(d) - 1 for d in DOCUMENTS)
    assert min(t["held"] for t in record["trace"]) <= record["trace"][0]["held"]
    assert record["counts"] == [1, 1]
    assert all(t.isfinite().all() for t in load_file(router.file("router.safetensors")).values())


def test_several_sets_of_blocks_are_one(store: Store, tiny_tokenizer: Path) -> None:
    seated = members(store, tiny_tokenizer)
    two = [blocks_artifact(store, n, d) for n, d in (("x", DOCUMENTS[:10]), ("y", DOCUMENTS[10:]))]
    record = json.loads(fitted(store, tiny_tokenizer, recipe(seated, LINEAR), seated, two).file("router.json").read_text())
    assert record["tokens"] == sum(len(d) - 1 for d in DOCUMENTS)
    some = recipe(seated, {**LINEAR, "tokens": 60})
    record = json.loads(fitted(store, tiny_tokenizer, some, seated, two).file("router.json").read_text())
    assert 30 <= record["tokens"] <= 60 + 2 * 24


def test_held_out_documents_go_by_content_and_seed() -> None:
    contents = [f"document {i}" for i in range(4000)]
    held = held_out_documents(contents, 0)
    assert 0.17 < held.float().mean() < 0.23
    assert torch.equal(held.flip(0), held_out_documents(contents[::-1], 0))
    assert not torch.equal(held, held_out_documents(contents, 1))


def test_slots_of_one_expert_are_said_to_be_one(
    store: Store, tiny_tokenizer: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "QUIET", False)
    seated = members(store, tiny_tokenizer, repeats=16)
    fitted(store, tiny_tokenizer, recipe(seated, LINEAR), seated, [blocks(store)])
    said = capsys.readouterr().err
    assert "slots of one expert cannot be told apart" in said
    assert "'a' (16 slots), 'b' (16 slots)" in said


def test_documents_that_nobody_may_answer_are_left_out(store: Store, tiny_tokenizer: Path) -> None:
    seated = members(store, tiny_tokenizer)
    valid = blocks(store, times=True)
    spec = recipe(seated, LINEAR, eligible="strict")
    answered = [d for d, time in enumerate(TIMES) if time >= date(2015, 1, 1)]
    assert 0 < len(answered) < len(DOCUMENTS)
    record = json.loads(fitted(store, tiny_tokenizer, spec, seated, [valid]).file("router.json").read_text())
    assert record["tokens"] == sum(len(DOCUMENTS[d]) - 1 for d in answered)
    rule = spec.eligibility(seated)
    allowed = eligibility(rule["rule"], ["a", "b"], rule["dates"])
    data, document_NT, _ = open_scored(valid, scores(store, seated, valid), allowed)
    for d in answered:
        inside = document_NT == d
        expected = torch.tensor([True, TIMES[d] >= date(2016, 1, 1)])
        assert (data.eligible_NTU[inside] == expected).all()


def test_nothing_to_fit_on(store: Store, tiny_tokenizer: Path) -> None:
    seated = members(store, tiny_tokenizer)
    early = blocks_artifact(store, "early", DOCUMENTS[:3], times=[date(2013, 1, 1)] * 3)
    with pytest.raises(WorkError, match="holds no token to fit on"):
        fitted(store, tiny_tokenizer, recipe(seated, LINEAR, eligible="strict"), seated, [early])


def test_a_posterior_that_is_not_fitted_is_no_artifact(store: Store, tiny_tokenizer: Path) -> None:
    seated = members(store, tiny_tokenizer)
    spec = recipe(seated, {"kind": "posterior", "fit": False})
    assert spec.router.fitting is None
    made = whole(store, tiny_tokenizer, spec, seated)
    assert "router.safetensors" not in made.files


def test_a_dry_run_reads_nothing(store: Store, tiny_tokenizer: Path) -> None:
    """Missing experts and scores are stand-ins; the plan says what would be made."""
    seated = members(store, tiny_tokenizer)
    valid = blocks(store)
    dry = DryStore(store.root)
    spec = recipe(seated, LINEAR, eligible="strict")
    seated[0] = replace(seated[0], knowledge=None)  # not known before its corpus is read
    of_experts = [scores(dry, seated, valid)]
    router = fit_router(dry, spec, seated, [valid], of_experts, tokenizer_artifact(store, tiny_tokenizer), 0)
    assert router.planned
    assert ("routers", False) in {(step.kind, step.cached) for step in dry.steps.values()}


def test_routed_scores_and_usage(store: Store, tiny_tokenizer: Path) -> None:
    """The mixture's own scores as an artifact, with who was used where."""
    seated = members(store, tiny_tokenizer)
    valid = blocks(store, times=True)
    spec = recipe(seated, LINEAR, eligible="strict")
    mixture = whole(store, tiny_tokenizer, spec, seated, valid)
    parts = scores(store, seated, valid)
    made = routed(store, mixture, valid, parts, label="scores of mix")
    result = routed_nll(mixture, valid, parts)
    files, arrays = load_file(made.file("scores.safetensors")), load_file(valid.file("blocks.safetensors"))
    answered = ~torch.from_numpy(result.nll).isnan()
    assert torch.equal(files["answered"].bool(), answered)
    assert torch.equal(-files["logp"][answered], torch.from_numpy(result.nll)[answered])
    counted = (arrays["target"][:, 1:] != 0) & answered
    assert made.facts["tokens"] == counted.sum()
    assert made.facts["nll"] == pytest.approx(result.nll[counted.numpy()].mean(), rel=1e-5)
    assert sum(made.facts["utilization"]) == pytest.approx(1)
