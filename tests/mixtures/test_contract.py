"""Mixtures at every place answer the same questions, with the same signatures, and are saved and opened in one way."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.mixtures.adapters import cases as adapters
from tests.mixtures.layers import cases as layers
from tests.tiny import llama, write_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

import coterie
from coterie.errors import RequestError
from coterie.mixtures.adapters.adapters_mixture import AdaptersMixture
from coterie.mixtures.layers.layers_mixture import LayersMixture
from coterie.mixtures.load import combine
from coterie.mixtures.mixture import Mixture
from coterie.mixtures.outputs.outputs_mixture import OutputsMixture

CLASSES = [OutputsMixture, LayersMixture, AdaptersMixture]
QUESTIONS = ["log_probs", "nll", "weights", "complete", "generate", "query", "save_pretrained", "from_pretrained"]
IDS = torch.arange(3, 27).reshape(2, 12)
MAKE: dict[str, Callable[[], Mixture]] = {  # three experts in four slots
    "outputs": lambda: combine({f"e{u}": llama(u) for u in range(3)}, ["e0", "e1", "e1", "e2"]),
    "layers": lambda: layers.mixture("llama", (0, 1, 1, 2))[0],
    "adapters": lambda: adapters.mixture(slots=[0, 1, 1, 2]),
}


@pytest.fixture(params=MAKE)
def m(request: pytest.FixtureRequest) -> Mixture:
    return MAKE[request.param]()


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("question", QUESTIONS)
def test_questions_are_defined_once(kind: type[Mixture], question: str) -> None:
    assert getattr(kind, question).__qualname__ == f"Mixture.{question}"


@pytest.mark.parametrize("kind", CLASSES)
def test_forward_takes_what_a_causal_model_takes_and_a_date(kind: type[Mixture]) -> None:
    theirs = {"input_ids", "attention_mask", "position_ids", "past_key_values", "labels"}
    assert theirs | {"time"} <= inspect.signature(kind.forward).parameters.keys()


def test_answers_have_one_shape_and_agree(m: Mixture) -> None:
    logp_BTV, nll_BT1, weight_BTS = m.log_probs(IDS), m.nll(IDS), m.weights(IDS)
    assert logp_BTV.shape[:2] == (2, 12)
    assert (logp_BTV.exp().sum(-1) - 1).abs().max() < 1e-5
    assert torch.allclose(nll_BT1, -logp_BTV[:, :-1].gather(-1, IDS[:, 1:, None])[..., 0], atol=1e-4)
    assert weight_BTS.shape == (2, 12, 4)
    assert torch.allclose(weight_BTS.sum(-1), torch.ones(2, 12), atol=1e-5)
    assert torch.allclose(weight_BTS[..., 1] + weight_BTS[..., 2], 2 * weight_BTS[..., 1]) or isinstance(m, LayersMixture)
    assert not isinstance(m, OutputsMixture) or torch.equal(m.nll(IDS, time="2016-05-01"), nll_BT1)
    assert torch.allclose(m(IDS).logits.log_softmax(-1), logp_BTV, atol=1e-5)


@pytest.mark.parametrize("question", ["log_probs", "nll", "weights"])
def test_dates_masks_and_positions_are_checked_alike(m: Mixture, question: str) -> None:
    ask = getattr(m, question)
    whole = ask(IDS)
    assert torch.allclose(ask(IDS, attention_mask=torch.ones_like(IDS)), whole, atol=1e-6)
    assert torch.allclose(ask(IDS, position_ids=torch.arange(12)[None]), whole, atol=1e-6)
    with pytest.raises(RequestError, match="one for each row"):
        ask(IDS, time=["2017", "2018", "2019"])
    with pytest.raises(TypeError, match="mask"):
        ask(IDS, mask=torch.ones_like(IDS))


def test_a_date_that_can_have_no_effect_is_an_error(m: Mixture) -> None:
    if isinstance(m, OutputsMixture):
        return
    m.nll(IDS, time=[None, None])
    m.generate(IDS, time=None, max_new_tokens=1)
    for ask in (m.log_probs, m.nll, m.weights, m.generate, m.forward):
        with pytest.raises(RequestError, match="a date has no effect on this mixture"):
            ask(IDS, time="1990-01-01")
    with pytest.raises(RequestError, match="no effect"):
        m.nll(IDS, time=[None, 2016])


def test_slots_point_at_experts(m: Mixture) -> None:
    assert m.slots == [{"slot": i, "name": f"e{u}", "expert": u} for i, u in enumerate((0, 1, 1, 2))]
    assert m.names == ["e0", "e1", "e2"]
    assert len(m.experts) == 3
    for slot in m.slots:
        assert m.experts[slot["expert"]] is not None
    sizes = [sum(t.numel() for t in _tensors(m.experts[u])) for u in range(3)]
    assert len(set(sizes)) == 1
    assert sizes[0] > 0


def _tensors(expert: Any) -> list[torch.Tensor]:
    if isinstance(expert, torch.nn.Module):
        return list(expert.parameters())
    return [tensor for factors in expert.values() for tensor in (factors.A_RI, factors.B_OR)]


def test_generating_with_a_seed_is_repeatable(m: Mixture) -> None:
    how: dict[str, Any] = {"max_new_tokens": 5, "do_sample": True, "pad_token_id": 0, "eos_token_id": None}
    state = torch.get_rng_state()
    one, two = (m.generate(IDS, seed=1, **how) for _ in range(2))
    assert torch.equal(one, two)
    assert torch.equal(state, torch.get_rng_state())
    assert one.shape == (2, 17)


# files --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(m: Mixture, tmp_path: Path) -> Path:
    m.tokenizer = AutoTokenizer.from_pretrained(write_tokenizer(tmp_path / "tokenizer"))
    m.generation_config.update(eos_token_id=2, pad_token_id=0)
    m.save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def test_it_comes_back_from_its_directory(m: Mixture, folder: Path) -> None:
    for opened in (coterie.load(folder), AutoModelForCausalLM.from_pretrained(folder), type(m).from_pretrained(str(folder))):
        assert type(opened) is type(m)
        assert (opened.log_probs(IDS) - m.log_probs(IDS)).abs().max() < 5e-6
        assert opened.slots == m.slots
        assert opened.tokenizer is not None
        assert opened.generation_config.eos_token_id == 2
        assert not opened.training


def test_saving_over_what_was_opened_is_refused(folder: Path) -> None:
    """Its files may be hard links into a store."""
    with pytest.raises(RequestError, match="opened from there"):
        coterie.load(folder).save_pretrained(folder)


@pytest.mark.parametrize("dtype", ["auto", "float32", torch.float32])
def test_options_at_their_defaults_mean_nothing(m: Mixture, folder: Path, dtype: Any) -> None:
    """As lm-eval and pipelines give them."""
    opened = AutoModelForCausalLM.from_pretrained(
        folder,
        revision="main",
        dtype=dtype,
        trust_remote_code=False,
        gguf_file=None,
        quantization_config=None,
        subfolder="",
        device_map={"": "cpu"},
        attn_implementation="sdpa",
        ignore_mismatched_sizes=False,
        local_files_only=True,
        low_cpu_mem_usage=True,
        offload_folder="./offload",
        variant=None,
        use_safetensors=True,
    )
    assert opened.dtype == torch.float32
    assert opened.log_probs(IDS).shape == m.log_probs(IDS).shape


@pytest.mark.parametrize("place", ["outputs", "adapters"])
@pytest.mark.parametrize(
    "option",
    [
        {"subfolder": "deeper"},
        {"quantization_config": {"bits": 4}},
        {"attn_implementation": "eager"},
        {"device_map": {"model": "cpu", "lm_head": "cpu"}},
        {"variant": "fp16"},
    ],
    ids=lambda o: next(iter(o)),
)
def test_options_that_would_change_something_are_refused(place: str, option: dict[str, Any], tmp_path: Path) -> None:
    made = MAKE[place]()
    made.save_pretrained(tmp_path / "m")
    with pytest.raises(RequestError, match=f"{next(iter(option))} has no meaning for a mixture"):
        type(made).from_pretrained(tmp_path / "m", **option)


def test_what_was_loaded_is_reported(m: Mixture, folder: Path) -> None:
    opened: Any = type(m).from_pretrained(folder, output_loading_info=True)
    assert type(opened[0]) is type(m)
    assert not any(opened[1].values())
