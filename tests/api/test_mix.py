"""What Python makes is what a recipe makes: the same artifacts, the same figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.api.conftest import MIXTURES, TRAIN, House, texts_of
from tests.run.small import WORDS
from tests.tiny import llama

import coterie
from coterie.store import sha256


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_the_recipes_own_artifact(house: House, name: str) -> None:
    at, kind, settings = MIXTURES[name]
    settings = dict(settings)
    if "tune" in settings:
        settings["tune"] = coterie.Tune(**settings["tune"])
    texts = house.texts(kind) if name not in ("average", "merged", "arrow") else None
    m: Any = coterie.mix(
        house.experts(kind), at=at, base=house.base, texts=texts, sequence_length=32, store=house.store, **settings
    )
    assert m.source.made.session.mixture_made.digest == house.run.summary["mixtures"][name]
    theirs = house.run.mixtures[name]
    ids_BT = torch.randint(1, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    assert torch.equal(m.log_probs(ids_BT), theirs.log_probs(ids_BT))


def test_settings_may_be_objects_and_texts_may_come_later(house: House) -> None:
    posterior: Any = coterie.mix(
        house.experts(),
        router=coterie.Posterior(decay=0.9, epochs=2),
        base=house.base,
        sequence_length=32,
        store=house.store,
    )
    assert posterior.config.router["fit"] is False
    assert posterior.fit(house.texts()) is posterior
    assert posterior.source.made.session.mixture_made.digest == house.run.summary["mixtures"]["posterior"]
    arrow = coterie.routers.adapters.Arrow(top_k=1)
    m: Any = coterie.mix(house.experts("lora"), at="adapters", router=arrow, base=house.base, store=house.store)
    assert m.source.made.session.mixture_made.digest == house.run.summary["mixtures"]["arrow"]


def test_an_expert_is_the_recipes_own_artifact(house: House) -> None:
    full = coterie.train(
        house.base, house.corpora["fruit"], sequence_length=32, store=house.store, out=house.out.parent / "again", **TRAIN
    )
    assert sha256(house.out.parent / "again/manifest.json") == sha256(house.out / "experts/fruit/manifest.json")
    ids_BT = torch.tensor([full.tokenizer("apple pear")["input_ids"]])
    assert torch.equal(full.nll(ids_BT), house.run.experts["fruit"].nll(ids_BT))
    low: Any = coterie.train(
        house.base,
        house.corpora["tools"],
        kind="lora",
        lora=coterie.Lora(r=2),
        sequence_length=32,
        store=house.store,
        **TRAIN,
    )
    folder = low.source.folder
    assert sha256(folder / "manifest.json") == sha256(house.out / "experts/tools-lora/manifest.json")


def test_figures_are_those_of_the_recipe(house: House) -> None:
    m = coterie.mix(
        house.experts(),
        router={"kind": "posterior", "decay": 0.9, "epochs": 2},
        base=house.base,
        texts=house.texts(),
        sequence_length=32,
        store=house.store,
    )
    models = {**house.experts(), "posterior": m, "opened": coterie.load(house.out / "mixtures/posterior")}
    table = coterie.evaluate(models, house.corpora, bootstrap=20, sequence_length=32, store=house.store)
    recorded = house.run.summary["evaluation"]["losses"]
    assert set(table["group"]) == {*WORDS, "all"}
    for row in table.iter_rows(named=True):
        theirs = recorded["posterior" if row["model"] == "opened" else row["model"]][row["group"]]
        assert row["tokens"] == theirs["tokens"]
        assert row["nll"] == pytest.approx(theirs["nll"], abs=1e-5)
        assert [row["low"], row["high"]] == pytest.approx(theirs["ci95"], abs=1e-4)
    overall = {row["model"]: row for row in table.filter(table["group"] == "all").iter_rows(named=True)}
    best = min(house.experts(), key=lambda name: overall[name]["nll"])
    assert overall[best]["difference"] is None
    mixed = overall["posterior"]
    assert mixed["difference"] == pytest.approx(mixed["nll"] - overall[best]["nll"], abs=1e-6)
    assert mixed["difference_low"] < mixed["difference"] < mixed["difference_high"]


def test_models_in_memory_paths_and_repeats(house: House) -> None:
    a, b = llama(5), llama(6)
    m: Any = coterie.mix([a, b, a, house.out / "experts/fruit"], tokenizer=house.base)
    assert [slot["name"] for slot in m.slots] == ["expert-1", "expert-2", "expert-1", "fruit"]
    ids_BT = torch.randint(1, 90, (2, 9), generator=torch.Generator().manual_seed(1))
    fruit = house.run.experts["fruit"].log_probs(ids_BT)
    parts = [model(ids_BT).logits.log_softmax(-1) for model in (a, b, a)]
    expected = torch.stack([*parts, fruit]).logsumexp(0) - torch.tensor(4.0).log()
    assert (m.log_probs(ids_BT) - expected).abs().max() < 1e-5
    assert m.tokenizer is not None


def test_a_peft_model_in_memory_brings_its_base(house: House) -> None:
    from peft import PeftModel

    from coterie.models.open import open_model

    adapted = PeftModel.from_pretrained(open_model(house.base), str(house.out / "experts/fruit-lora"))
    m: Any = coterie.mix({"low": adapted}, tokenizer=house.base)
    ids_BT = torch.randint(1, 90, (2, 9), generator=torch.Generator().manual_seed(1))
    assert (m.log_probs(ids_BT) - house.run.experts["fruit-lora"].log_probs(ids_BT)).abs().max() < 1e-5
    both: Any = coterie.mix({"one": adapted, "two": house.out / "experts/tools-lora"}, at="adapters", base=house.base)
    assert both.log_probs(ids_BT).isfinite().all()


def test_what_a_model_has_learned_in_memory_counts(house: House) -> None:
    expert: Any = coterie.load(house.out / "experts/fruit")
    with torch.no_grad():
        next(expert.parameters()).mul_(1.5)
    ids_BT = torch.randint(1, 90, (2, 9), generator=torch.Generator().manual_seed(1))
    m: Any = coterie.mix([expert])
    assert torch.equal(m.log_probs(ids_BT), expert.log_probs(ids_BT))
    losses = coterie.evaluate({"changed": expert, "saved": house.out / "experts/fruit"}, texts_of("fruit"))["nll"]
    assert abs(losses[0] - losses[2]) > 1e-3


def test_training_takes_texts_rows_and_datasets(house: House) -> None:
    from datasets import Dataset

    rows = [{"prompt": "which?", "response": text} for text in texts_of("fruit")]
    how: dict[str, Any] = {"epochs": 1, "precision": "fp32", "sequence_length": 32}
    for data in (texts_of("fruit"), rows, Dataset.from_list([{"body": t} for t in texts_of("fruit")])):
        text = "body" if isinstance(data, Dataset) else None
        expert = coterie.train(house.base, data, text=text, name="mine", **how)
        assert expert.config.experts[0]["name"] == "mine"
    on = coterie.train(house.out / "experts/fruit-lora", texts_of("fruit"), kind="lora", lora=coterie.Lora(r=2), **how)
    ids_BT = torch.tensor([on.tokenizer("apple pear plum")["input_ids"]])
    assert not torch.equal(on.nll(ids_BT), house.run.experts["fruit-lora"].nll(ids_BT))
