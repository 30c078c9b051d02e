"""Generation: text, sampling, stops, dates, beams, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.invariants.cases import Runs, mixture, some
from tests.routing.cases import RECIPES, name
from tests.tiny import V
from transformers import AutoTokenizer, TextIteratorStreamer, pipeline

from coterie.errors import RequestError
from coterie.mixtures.outputs.outputs_mixture import OutputsMixture

PROMPTS = ["the cat", "def f(x): return", "On"]
ROUTERS = [router.model_copy(update={"top_k": 1}) if router.kind == "uniform" else router for router in RECIPES]


@pytest.fixture(params=ROUTERS, ids=name)
def m(request: pytest.FixtureRequest, tiny_tokenizer: Path) -> OutputsMixture:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    return mixture(some([1, 1]), recipe=request.param, counts=[2, 1], tokenizer=tokenizer, rule="strict", firsts=[0, 365])


def test_complete(m: OutputsMixture) -> None:
    said = m.complete(PROMPTS, max_new_tokens=8)
    assert said == [m.complete(p, max_new_tokens=8) for p in PROMPTS]
    ids = [0, *m.tokenizer(PROMPTS[0])["input_ids"]]
    grown = torch.tensor([ids])
    while grown.shape[1] < len(ids) + 8 and (grown.shape[1] == len(ids) or grown[0, -1] != 0):
        grown = torch.cat([grown, m.log_probs(grown)[:, -1:].argmax(-1)], dim=1)
    assert said[0] == m.tokenizer.decode(grown[0, len(ids) :], skip_special_tokens=True)


def test_sampling_is_repeatable_by_seed_and_leaves_the_global_generator_alone(m: OutputsMixture) -> None:
    how: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.5}
    torch.manual_seed(0)
    one, next_draw = m.complete(PROMPTS[0], seed=1, **how), torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(next_draw, torch.rand(1))
    assert m.complete(PROMPTS[0], seed=1, **how) == one
    assert len({m.complete(PROMPTS[0], seed=s, **how) for s in range(6)}) > 1
    greedy = m.complete(PROMPTS[0], max_new_tokens=12)
    assert m.complete(PROMPTS[0], seed=1, top_k=1, **how) == greedy
    assert m.complete(PROMPTS[0], seed=1, top_p=1e-9, **how) == greedy


def test_sampling_follows_the_mixture_s_distribution(m: OutputsMixture) -> None:
    ids = torch.tensor([[0, 5, 9, 11]])
    drawn = m.generate(ids.expand(3000, -1), max_new_tokens=1, do_sample=True, top_k=0, seed=3)[:, -1]
    share = torch.bincount(drawn, minlength=V) / 3000
    assert (share - m.log_probs(ids)[0, -1].exp()).abs().max() < 0.04


def test_dates_in_generation_run_only_who_may_answer(m: OutputsMixture) -> None:
    with Runs(m) as runs:
        early = m.complete(PROMPTS[0], time="2015-06-01", max_new_tokens=5)
    assert runs.of[0] > 0
    assert runs.of[1] == 0
    late = m.complete(PROMPTS[0], time="2017-06-01", max_new_tokens=5)
    assert m.complete([PROMPTS[0]] * 2, time=["2015-06-01", "2017-06-01"], max_new_tokens=5) == [early, late]
    with pytest.raises(RequestError, match="no expert may be used as of 2014-01-01"):
        m.complete(PROMPTS[0], time="2014", max_new_tokens=5)


def test_stops(m: OutputsMixture) -> None:
    said = m.complete(PROMPTS[0], max_new_tokens=12)
    stop = said[3:5]
    assert m.complete(PROMPTS[0], max_new_tokens=12, stop=stop) == said[: said.index(stop)]
    ids = torch.tensor([[0, 5, 9]])
    full = m.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None)[0]
    ended = m.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=int(full[4]))[0]
    assert ended.tolist() == full[: full.tolist().index(int(full[4]), 3) + 1].tolist()


def test_long_prompts_lose_their_beginning(m: OutputsMixture) -> None:
    ids = m.tokenizer("cat " * 100)["input_ids"][-(64 - 8) :]
    expected = m.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :]
    assert m.complete("cat " * 100, max_new_tokens=8) == m.tokenizer.decode(expected, skip_special_tokens=True)
    with pytest.raises(RequestError, match="nothing would be left of the prompt"):
        m.complete("cat", max_new_tokens=64)


def test_beams_samples_streams_and_pipelines(m: OutputsMixture) -> None:
    ids = torch.tensor([[0, 5, 9], [0, 7, 3]])
    cached = m.generate(ids, max_new_tokens=5, num_beams=3, num_return_sequences=2, time="2016-06-01")
    plain = m.generate(ids, max_new_tokens=5, num_beams=3, num_return_sequences=2, time="2016-06-01", use_cache=False)
    assert torch.equal(cached, plain)
    samples = m.generate(ids, max_new_tokens=3, do_sample=True, num_return_sequences=2, time=["2015-06-01", "2017"], seed=0)
    assert samples.shape[0] == 4
    streamer = TextIteratorStreamer(m.tokenizer, skip_prompt=True)
    m.generate(ids[:1], max_new_tokens=4, do_sample=False, streamer=streamer)
    assert "".join(streamer)
    said = pipeline("text-generation", model=m, tokenizer=m.tokenizer)("the cat", max_new_tokens=4, do_sample=False)
    assert said[0]["generated_text"].startswith("the cat")


def test_a_conversation_goes_on_from_its_cache(m: OutputsMixture) -> None:
    ids = torch.tensor([[0, 5, 9]])
    how: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 4}
    first = m.generate(ids, return_dict_in_generate=True, **how)
    longer = torch.cat([first.sequences, torch.tensor([[4, 8]])], dim=1)
    assert torch.equal(m.generate(longer, past_key_values=first.past_key_values, **how), m.generate(longer, **how))
    early = m.generate(ids, time="2015-06-01", return_dict_in_generate=True, **how)
    longer = torch.cat([early.sequences, ids], dim=1)
    with pytest.raises(RequestError, match="begun at a date"):
        m.generate(longer, past_key_values=early.past_key_values, time="2017", **how)


def test_what_has_no_meaning_is_refused(m: OutputsMixture) -> None:
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(RequestError, match="no effect at temperature 0"):
        m.complete("the cat", top_k=3)
    with pytest.raises(RequestError, match="not negative"):
        m.complete("the cat", temperature=-1.0)
    with pytest.raises(RequestError, match="not a date"):
        m.log_probs(ids, time="soon")
    with pytest.raises(RequestError, match="one for each row"):
        m.log_probs(ids, time=["2017", "2018"])
    with pytest.raises(RequestError, match="no one embedding"):
        m.generate(inputs_embeds=torch.zeros(1, 2, 16))
    with pytest.raises(RequestError, match="output_attentions has no meaning"):
        m(ids, output_attentions=True)
    with pytest.raises(RequestError, match="one dynamic cache for each expert"):
        m.generate(ids, cache_implementation="static", max_new_tokens=2)
    with pytest.raises(ValueError, match="assisted generation is not supported"):
        m.generate(ids, assistant_model=some([1])[0], max_new_tokens=2)
    with pytest.raises(RequestError, match="made of experts"):
        OutputsMixture(m.config)
    m.tokenizer = None
    with pytest.raises(RequestError, match="no tokenizer"):
        m.complete("the cat")


def test_loss_is_the_mean_nll_and_reaches_experts(m: OutputsMixture) -> None:
    ids = torch.randint(1, V, (2, 7))
    labels = ids.clone()
    labels[:, 3] = -100
    out = m(ids, labels=labels)
    nll_BT1 = m.nll(ids)
    kept = labels[:, 1:] != -100
    assert out.loss.item() == pytest.approx(nll_BT1[kept].mean().item(), abs=1e-5)
    assert m(ids, labels=labels, num_items_in_batch=24).loss.item() == pytest.approx(
        nll_BT1[kept].sum().item() / 24, abs=1e-5
    )
    assert isinstance(m(ids, return_dict=False), tuple)
