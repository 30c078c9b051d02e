"""`fit`, `add`, `remove`, `save_pretrained` and `export` of mixtures, at every place."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from tests.api.conftest import House, texts_of
from tests.run.small import WORDS
from tests.tiny import llama
from transformers import AutoModelForCausalLM

import coterie
from coterie.errors import RequestError

KIND = {"outputs": "full", "layers": "ffn", "adapters": "lora"}
LEARNS: dict[str, Any] = {
    "outputs": {"router": coterie.Linear(epochs=20, learning_rate=0.05)},
    "layers": {"router": "ridge"},
    "adapters": {"router": "ridge"},
}


def ids() -> torch.Tensor:
    return torch.randint(1, 90, (2, 12), generator=torch.Generator().manual_seed(0))


def mixed(house: House, at: Any, **more: Any) -> Any:
    return coterie.mix(house.experts(KIND[at]), at=at, base=house.base, sequence_length=32, **more)


def both(house: House, at: str, seed: int = 7) -> Any:
    """Texts to fit on, in the form that each place takes."""
    found = {name: texts_of(domain, seed=seed) for name, domain in zip(house.experts(KIND[at]), WORDS, strict=True)}
    return [text for of in found.values() for text in of] if at == "outputs" else found


def loss(model: Any, house: House) -> float:
    table = coterie.evaluate({"m": model}, {d: texts_of(d, seed=99) for d in WORDS}, sequence_length=32, bootstrap=0)
    return table.filter(pl.col("group") == "all")["nll"].item()


@pytest.mark.parametrize("at", KIND)
def test_fitting_lowers_the_loss_on_texts_of_both_domains(house: House, at: str) -> None:
    m = mixed(house, at, **LEARNS[at])
    before, experts = loss(m, house), [entry["digest"] for entry in m.config.experts]
    assert m.fit(both(house, at)) is m
    assert loss(m, house) < before
    assert [entry["digest"] for entry in m.config.experts] == experts


def test_the_learned_gates_are_fitted_on_one_list(house: House) -> None:
    learned = coterie.routers.adapters.Learned(tokens=600)
    tune = coterie.Tune(tokens=600, train=coterie.Train(learning_rate=0.01, precision="fp32"))
    for m in (mixed(house, "adapters", router=learned), mixed(house, "layers", router="learned", tune=tune)):
        before = m.log_probs(ids())
        m.fit(both(house, "outputs"))
        assert not torch.equal(m.log_probs(ids()), before)


@pytest.mark.parametrize("at", KIND)
def test_one_more_and_one_less_is_what_it_was(house: House, at: str) -> None:
    names = list(house.experts(KIND[at]))
    m = mixed(house, at, **LEARNS[at]).fit(both(house, at))
    before, same = m.log_probs(ids()), m
    third: dict[str, Any] = {"texts": texts_of("fruit", seed=3)} if at != "outputs" else {}
    m.add("third", third_expert(house, KIND[at]), **third)
    assert [slot["name"] for slot in m.slots] == [*names, "third"]
    assert not torch.equal(m.log_probs(ids()), before)
    assert m.remove("third") is same
    assert torch.equal(m.log_probs(ids()), before)


def third_expert(house: House, kind: Any) -> Any:
    how: dict[str, Any] = {"epochs": 1, "precision": "fp32", "learning_rate": 0.01, "sequence_length": 32}
    lora = coterie.Lora(r=2) if kind == "lora" else None
    return coterie.train(house.base, [*texts_of("fruit", 9), *texts_of("tools", 9)], kind=kind, lora=lora, **how)


@pytest.mark.parametrize("at", KIND)
def test_what_was_saved_or_run_opens_and_goes_on(house: House, at: str, tmp_path: Path) -> None:
    m = mixed(house, at, **LEARNS[at]).fit(both(house, at))
    m.save_pretrained(tmp_path / "m")
    third = llama(9) if at == "outputs" else third_expert(house, KIND[at])
    for folder, unfitted in ((tmp_path / "m", {}), (house.out / "mixtures" / RUN[at], UNFITTED[at])):
        opened = coterie.load(folder)
        names = [slot["name"] for slot in opened.slots]
        opened.add("third", third)
        plain = mixed(house, at, **unfitted).add("third", third)
        assert [slot["name"] for slot in opened.slots] == [*names, "third"]
        # The router of two experts says nothing of three, so weights need no data until it is fitted again.
        assert (opened.log_probs(ids()) - plain.log_probs(ids())).abs().max() < 1e-5
        opened.remove("third")
        assert [slot["name"] for slot in opened.slots] == names
        if at == "outputs":
            opened.fit(both(house, at))
            assert opened.router.state_dict()


RUN = {"outputs": "posterior", "layers": "told-apart", "adapters": "gated"}
UNFITTED: dict[str, Any] = {"outputs": {"router": coterie.Posterior(decay=0.9)}, "layers": {}, "adapters": {}}


def test_an_expert_becomes_a_mixture(house: House) -> None:
    m = coterie.load(house.out / "experts/fruit").add("tools", house.out / "experts/tools")
    assert torch.equal(m.log_probs(ids()), house.run.mixtures["average"].log_probs(ids()))
    low = coterie.load(house.out / "experts/fruit-lora").add("tools", house.out / "experts/tools-lora", slots=2)
    assert [slot["name"] for slot in low.slots] == ["fruit-lora", "tools", "tools"]


def test_weights_that_changed_in_memory_are_kept(house: House) -> None:
    m: Any = coterie.mix(house.experts(), tokenizer=house.base)
    with torch.no_grad():
        next(m.experts[0].parameters()).mul_(1.5)
    changed = m.experts[0](ids()).logits.log_softmax(-1)
    m.remove("tools")
    assert torch.equal(m.log_probs(ids()), changed)


def test_a_copy_goes_its_own_way(house: House) -> None:
    m: Any = mixed(house, "outputs")
    before = m.log_probs(ids())
    copy.deepcopy(m).remove("tools")
    assert torch.equal(m.log_probs(ids()), before)
    m.remove("fruit")
    assert torch.equal(m.log_probs(ids()), house.run.experts["tools"].log_probs(ids()))


def test_it_exports_what_it_is_now(house: House, tmp_path: Path) -> None:
    m = mixed(house, "layers", router=coterie.routers.layers.RidgeRegression(top_k=1)).fit(both(house, "layers"))
    m.export("mixtral", tmp_path / "mixtral")
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "mixtral")
    with torch.no_grad():
        assert (stock(ids()).logits.log_softmax(-1) - m.log_probs(ids())).abs().max() < 1e-4
    with pytest.raises(RequestError, match=r"runs whole models side by side"):
        mixed(house, "outputs").export("mixtral", tmp_path / "no")
    with pytest.raises(RequestError, match="no format is called 'mistral'") as error:
        m.export("mistral", tmp_path / "no")
    assert error.value.do == "did you mean 'mixtral'?"


def test_a_mixture_of_the_library_says_how_it_is_opened_to_change(house: House) -> None:
    m: Any = AutoModelForCausalLM.from_pretrained(house.out / "mixtures/average")
    with pytest.raises(RequestError, match="not known") as error:
        m.add("third", llama(9))
    assert "coterie.load" in str(error.value)


def test_nothing_is_left_behind(house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    m = mixed(house, "outputs", router="posterior").fit(both(house, "outputs"))
    kept = mixed(house, "outputs", store=tmp_path / "kept")
    assert list(tmp_path.glob("coterie-*"))
    del m, kept
    gc.collect()
    assert not list(tmp_path.glob("coterie-*"))
    assert not list((tmp_path / "kept/temp").iterdir())
