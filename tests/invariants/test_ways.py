"""Equal ways are equal (14): cached or live scores, packed or alone, padded or not, one token at a time or all at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tests.invariants.cases import TIMES, ids, mixture, settings, some
from tests.mixtures.built import DOCUMENTS, blocks, members, recipe, scores, whole
from tests.mixtures.built import TIMES as DATES
from tests.routing.cases import RECIPES

from coterie.mixtures.load import load
from coterie.mixtures.outputs.cached_scores import routed_nll
from coterie.mixtures.outputs.mixture_cache import MixtureCache
from coterie.mixtures.outputs.outputs_place import materialise
from coterie.store import Store

times = st.sampled_from(TIMES)
LIVE = 1e-5
SHARP = 1e-4
"""A random router may multiply the last bits of the experts' log-probabilities by 20."""


@given(settings(), times)
def test_nll_is_the_gathered_log_probs(case: dict[str, Any], time: str | None) -> None:
    m, x_BT = mixture(some(case["counts"]), **case), ids()
    gathered = m.log_probs(x_BT, time=time)[:, :-1].gather(-1, x_BT[:, 1:, None]).squeeze(-1)
    assert (m.nll(x_BT, time=time) + gathered).abs().max() <= LIVE


@given(settings(), times, st.integers(1, 6), st.integers(1, 6))
def test_packed_is_alone(case: dict[str, Any], time: str | None, first: int, second: int) -> None:
    m, x_BT = mixture(some(case["counts"]), **case), ids(2, first + second)
    position_BT = torch.cat([torch.arange(first), torch.arange(second)]).expand(2, -1)
    parts = x_BT.split([first, second], dim=1)
    for ask in (m.log_probs, m.weights):
        alone = torch.cat([ask(part, time=time) for part in parts], dim=1)
        assert (ask(x_BT, time=time, position_ids=position_BT) - alone).abs().max() <= SHARP
    seam = torch.zeros(2, 1)
    alone = torch.cat([m.nll(parts[0], time=time), seam, m.nll(parts[1], time=time)], dim=1)
    assert (m.nll(x_BT, time=time, position_ids=position_BT) - alone).abs().max() <= SHARP


@given(settings(), st.lists(times, min_size=3, max_size=3), st.sampled_from(["left", "right"]))
def test_padded_is_alone(case: dict[str, Any], time: list[str | None], side: str) -> None:
    m, lengths, T = mixture(some(case["counts"]), **case), (3, 8, 5), 8
    rows = [ids(1, n) for n in lengths]

    def pad(row: torch.Tensor, value: int) -> torch.Tensor:
        gap = torch.full((1, T - row.shape[1]), value)
        return torch.cat([gap, row] if side == "left" else [row, gap], dim=1)

    x_BT = torch.cat([pad(row, 0) for row in rows])
    mask_BT = torch.cat([pad(torch.ones_like(row), 0) for row in rows])
    for ask in (m.log_probs, m.weights):
        whole_ = ask(x_BT, time=time, attention_mask=mask_BT)
        for b, row in enumerate(rows):
            assert (whole_[b][mask_BT[b] == 1] - ask(row, time=time[b])[0]).abs().max() <= SHARP
    nll_BT1 = m.nll(x_BT, time=time, attention_mask=mask_BT)
    for b, row in enumerate(rows):
        n = row.shape[1]
        inside = slice(T - n, None) if side == "left" else slice(0, n - 1)
        assert (nll_BT1[b, inside] - m.nll(row, time=time[b])[0]).abs().max() <= SHARP
        assert nll_BT1[b].count_nonzero() <= n - 1


@given(settings(), times, st.data())
def test_in_pieces_with_a_cache_is_all_at_once(case: dict[str, Any], time: str | None, data: st.DataObject) -> None:
    m, x_BT = mixture(some(case["counts"]), **case), ids(2, 9)
    cuts = sorted(data.draw(st.sets(st.integers(1, 8), max_size=4)))
    cache, said = MixtureCache(), []
    for start, end in zip([0, *cuts], [*cuts, 9], strict=True):
        with torch.no_grad():
            said.append(m(x_BT[:, start:end], past_key_values=cache, time=time).logits)
    assert cache.get_seq_length() == 9
    assert (torch.cat(said, dim=1) - m.log_probs(x_BT, time=time)).abs().max() <= SHARP


@given(settings(), times)
def test_generate_is_argmax_step_by_step(case: dict[str, Any], time: str | None) -> None:
    m, x_BT = mixture(some(case["counts"]), **case), ids(2, 4)
    said = m.generate(x_BT, time=time, max_new_tokens=6, do_sample=False, eos_token_id=None)
    plain = m.generate(x_BT, time=time, max_new_tokens=6, do_sample=False, eos_token_id=None, use_cache=False)
    grown = x_BT
    for _ in range(6):
        grown = torch.cat([grown, m.log_probs(grown, time=time)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(said, grown)
    assert torch.equal(plain, grown)


@given(settings(), st.lists(times, min_size=3, max_size=3), st.integers(1, 2))
def test_a_batch_with_left_padding_is_its_rows(case: dict[str, Any], time: list[str | None], beams: int) -> None:
    if None in time:
        time = None  # type: ignore[assignment]
    m, T = mixture(some(case["counts"]), **case), 6
    rows = [ids(1, n) for n in (2, 6, 4)]
    x_BT = torch.cat([torch.cat([torch.zeros(1, T - r.shape[1], dtype=torch.long), r], dim=1) for r in rows])
    mask_BT = torch.cat([(torch.arange(T) >= T - r.shape[1])[None].long() for r in rows])
    how: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams}
    together = m.generate(x_BT, attention_mask=mask_BT, time=time, **how)
    for b, row in enumerate(rows):
        alone = m.generate(row, time=time and time[b], **how)[0, row.shape[1] :]
        assert torch.equal(together[b, T:][: len(alone)], alone)
        assert (together[b, T:][len(alone) :] == 0).all()


@pytest.mark.parametrize("recipe_", RECIPES, ids=lambda r: f"{r.kind}-{'-'.join(getattr(r, 'features', ()))}")
@pytest.mark.parametrize("rule", ["all", "strict"])
def test_cached_scores_are_live_ones(store: Store, tiny_tokenizer: Path, tmp_path: Path, recipe_: Any, rule: str) -> None:
    """Losses and weights from cached scores of packed blocks against the live mixture on each document by itself."""
    seated = members(store, tiny_tokenizer, ("a", "b"), repeats=2)
    seated[1] = replace(seated[1], slots=seated[1].slots[:-1])
    valid = blocks(store, times=True)
    spec = recipe(seated, {**recipe_.model_dump(), **({} if recipe_.fitting is None else {"epochs": 2})}, eligible=rule)
    mixture_ = whole(store, tiny_tokenizer, spec, seated, valid)
    m = load(materialise(mixture_, seated, tmp_path / "mix"))
    routed = routed_nll(mixture_, valid, scores(store, seated, valid), chunk=3)
    files = load_file(valid.file("blocks.safetensors"))
    of_slot = [slot["expert"] for slot in m.slots]
    for d, document in enumerate(DOCUMENTS):
        n, at = (int(i[0]) for i in np.nonzero(files["document"] == d))
        span = slice(at, at + len(document) - 1)
        if rule == "strict" and DATES[d].year < 2015:
            assert np.isnan(routed.nll[n, span]).all()
            continue
        x_BT, time = torch.tensor([document]), DATES[d].isoformat()
        assert np.abs(routed.nll[n, span] - m.nll(x_BT, time=time)[0].numpy()).max() <= LIVE
        weight_TS = m.weights(x_BT, time=time)[0, :-1].numpy()
        for u in range(2):
            own = weight_TS[:, [i for i, e in enumerate(of_slot) if e == u]].sum(1)
            assert np.abs(routed.weight[n, span, u] - own).max() <= LIVE
    assert (routed.nll[files["position"][:, 1:] == 0] == 0).all()
