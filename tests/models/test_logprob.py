"""Log-probabilities against one forward for each document and a whole softmax."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.architectures import VOCABULARY, make
from torch import Tensor

from coterie.errors import RequestError
from coterie.models import logprob
from coterie.models import packed_inputs as packing
from coterie.models.logprob import log_probs, target_logp

ARCHITECTURES = ["llama", "gpt2", "qwen3", "mistral", "qwen2", "olmo2", "gemma2", "cohere", "granite", "opt"]


def rows(lengths: list[list[int]], seed: int) -> tuple[Tensor, Tensor]:
    """Random ids, and positions that restart with each document."""
    generator = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(0, VOCABULARY, (len(lengths), sum(lengths[0])), generator=generator)
    return ids_BT, torch.stack([torch.cat([torch.arange(n) for n in row]) for row in lengths])


@torch.no_grad()
def alone(model: torch.nn.Module, ids_BT: Tensor, lengths: list[list[int]]) -> Tensor:
    """The slow obvious way: each document by itself, a whole softmax, one gather."""
    logp_BT = torch.zeros(len(ids_BT), ids_BT.shape[1] - 1)
    for ids_T, out_T, row in zip(ids_BT, logp_BT, lengths, strict=True):
        begin = 0
        for n in row:
            document = ids_T[begin : begin + n]
            if n > 1:
                logp_TV = model(input_ids=document[None]).logits[0].float().log_softmax(-1)
                out_T[begin : begin + n - 1] = logp_TV[:-1].gather(1, document[1:, None])[:, 0]
            begin += n
    return logp_BT


LENGTHS = [[7, 9, 4], [20], [1, 1, 17, 1]]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_is_each_document_alone(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprob, "CHUNK", 16 * VOCABULARY)  # several chunks, the last one short
    model = make(architecture)
    ids_BT, position_BT = rows(LENGTHS, seed=1)
    with torch.no_grad():
        logp_BT = target_logp(model, ids_BT, position_BT)
    torch.testing.assert_close(logp_BT, alone(model, ids_BT, LENGTHS), rtol=0, atol=1e-5)
    assert logp_BT.dtype == torch.float32
    assert not logprob._needs_whole_logits(model)
    whole_BTV = log_probs(model, ids_BT, position_BT)
    assert torch.allclose(whole_BTV.exp().sum(-1), torch.ones(ids_BT.shape), atol=1e-5)


def test_the_reference_can_fail() -> None:
    """With a cache, as `generate` has it, documents leak into each other: the check above is not vacuous."""
    model = make("llama")
    ids_BT, position_BT = rows(LENGTHS, seed=1)
    with torch.no_grad():
        leaked = model(input_ids=ids_BT, position_ids=position_BT, use_cache=True).logits.log_softmax(-1)
        apart = log_probs(model, ids_BT, position_BT)
    assert (leaked - apart).abs().max() > 0.01


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.sets(st.integers(1, 15)), min_size=1, max_size=3), seed=st.integers(0, 2**16), chunk=st.integers(1, 64)
)
def test_any_packing_and_any_chunk(cuts: list[set[int]], seed: int, chunk: int) -> None:
    model = make("llama")
    lengths = [[b - a for a, b in zip([0, *sorted(c)], [*sorted(c), 16], strict=True)] for c in cuts]
    ids_BT, position_BT = rows(lengths, seed)
    before, logprob.CHUNK = logprob.CHUNK, chunk * VOCABULARY
    try:
        with torch.no_grad():
            logp_BT = target_logp(model, ids_BT, position_BT)
    finally:
        logprob.CHUNK = before
    torch.testing.assert_close(logp_BT, alone(model, ids_BT, lengths), rtol=0, atol=1e-5)


def test_without_positions_a_row_is_one_document() -> None:
    model = make("qwen3")
    ids_BT, _ = rows([[20], [20]], seed=2)
    with torch.no_grad():
        torch.testing.assert_close(target_logp(model, ids_BT), alone(model, ids_BT, [[20], [20]]), rtol=0, atol=1e-5)


def test_a_later_token_changes_nothing_before_it() -> None:
    model = make("mistral")
    ids_BT, position_BT = rows([[12, 8]], seed=3)
    changed_BT = ids_BT.clone()
    changed_BT[0, 9] = (ids_BT[0, 9] + 1) % VOCABULARY
    with torch.no_grad():
        before, after = (target_logp(model, ids, position_BT)[0] for ids in (ids_BT, changed_BT))
    assert torch.equal(before[:8], after[:8])
    assert torch.equal(before[11:], after[11:])  # the other document
    assert not torch.equal(before[8:11], after[8:11])


def test_an_unknown_head_falls_back_to_whole_logits() -> None:
    model = make("llama")
    plain = model.forward

    def scaled(*args: object, **kwargs: object) -> object:
        out = plain(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    model.forward = scaled
    ids_BT, position_BT = rows(LENGTHS, seed=4)
    with torch.no_grad():
        logp_BT = target_logp(model, ids_BT, position_BT)
    assert logprob._needs_whole_logits(model)
    torch.testing.assert_close(logp_BT, alone(model, ids_BT, LENGTHS), rtol=0, atol=1e-5)


def test_an_architecture_that_cannot_keep_documents_apart_is_refused() -> None:
    model = make("llama")
    plain = model.forward
    model.forward = lambda **given: plain(**(given | {"use_cache": True, "attention_mask": None}))
    with pytest.raises(RequestError, match="does not keep packed documents apart"):
        packing.inputs(model, *rows(LENGTHS, seed=5))


def test_memory_follows_the_chunk_not_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor of the whole vocabulary for all tokens is ever made."""
    model = make("llama", vocab_size=5000)
    ids_BT = torch.randint(0, 5000, (4, 64))
    monkeypatch.setattr(logprob, "CHUNK", 32 * 5000)
    largest = 0
    plain = torch.Tensor.logsumexp

    def noted(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        nonlocal largest
        largest = max(largest, self.numel())
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "logsumexp", noted)
    head_inputs: list[int] = []
    model.lm_head.register_forward_hook(lambda _, given, __: head_inputs.append(given[0].shape[0]))
    with torch.no_grad():
        target_logp(model, ids_BT)  # measures the head
        head_inputs.clear()
        target_logp(model, ids_BT)
    assert largest == 32 * 5000
    assert max(head_inputs) == 32
    assert sum(head_inputs) == 4 * 63
