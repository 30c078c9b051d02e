"""Every wrong request says what is wrong, and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.api.conftest import House, texts_of
from tests.tiny import llama

import coterie
from coterie.errors import RequestError

Case = tuple[Callable[[House], Any], str, str]

CASES: dict[str, Case] = {
    "nothing": (lambda h: coterie.mix([]), "a mixture needs at least one expert", ""),
    "no list": (lambda h: coterie.mix("runs/x/experts/code"), "give a list of models", ""),  # type: ignore[arg-type]
    "no model": (lambda h: coterie.mix([3]), "this is no model", "a transformers or PEFT model"),  # type: ignore[list-item]
    "no name": (lambda h: coterie.mix({"My Expert": llama(1)}), "name is wrong", "lower-case letters"),
    "vocabulary": (
        lambda h: coterie.mix([llama(1), llama(2, vocab_size=50)], tokenizer=h.base),
        "different vocabularies",
        "train both with one tokenizer",
    ),
    "no tokenizer": (lambda h: coterie.mix([llama(1)]), "no tokenizer lies beside", "give tokenizer="),
    "router": (
        lambda h: coterie.mix(h.experts(), router="postrior"),
        "no router at outputs is called 'postrior'",
        "did you mean 'posterior'?",
    ),
    "router of another place": (
        lambda h: coterie.mix(h.experts(), router=coterie.routers.adapters.Arrow()),
        "wrong value",
        "OutputRouter",
    ),
    "router's key": (
        lambda h: coterie.mix(h.experts(), router={"kind": "posterior", "gamma": 0.9}),
        "unknown key",
        "router.gamma",
    ),
    "place": (lambda h: coterie.mix(h.experts(), at="output"), "'output'", "did you mean 'outputs'?"),  # type: ignore[arg-type]
    "key of another place": (
        lambda h: coterie.mix(h.experts("ffn"), at="layers", base=h.base, eligible="strict"),
        "unknown key",
        "eligible",
    ),
    "slot": (lambda h: coterie.mix(h.experts(), slots=["fruit", "tool"]), "no expert is called 'tool'", "'tools'"),
    "window": (lambda h: coterie.mix(h.experts(), windows={"tool": (1, 2)}), "no expert is called 'tool'", "'tools'"),
    "window without end": (lambda h: coterie.mix(h.experts(), windows={"tools": "2013"}), "a window is", ""),  # type: ignore[dict-item]
    "window without days": (lambda h: coterie.mix(h.experts(), windows={"tools": (2015, 2015)}), "wrong value", "is empty"),
    "base at layers": (lambda h: coterie.mix(h.experts("ffn"), at="layers"), "branch from is not known", "give base="),
    "whole models at adapters": (
        lambda h: coterie.mix(h.experts(), at="adapters", base=h.base),
        "is no LoRA adapter",
        "kind lora",
    ),
    "base at adapters": (
        lambda h: coterie.mix([without_base(h)], at="adapters"),
        "the model that it rests on is not known",
        "give base=",
    ),
    "top_k": (
        lambda h: coterie.mix(h.experts(), router=coterie.Posterior(top_k=3)),
        "top_k is above the number of experts",
        "at most 2",
    ),
    "a mixture as an expert": (
        lambda h: coterie.mix([h.out / "mixtures/average"]),
        "a mixture cannot be an expert of another",
        "one by one",
    ),
    "nowhere": (lambda h: coterie.mix(["./no/such/place"]), "no such directory", "the folder of a mixture or an expert"),
    "one list for a gate": (
        lambda h: coterie.mix(h.experts("ffn"), at="layers", base=h.base, router="ridge").fit(texts_of("fruit")),
        "needs texts of each expert",
        "{'fruit-ffn': [...], 'tools-ffn': [...]}",
    ),
    "texts of one of two": (
        lambda h: coterie.mix(h.experts("lora"), at="adapters", router="ridge").fit({"fruit-lora": texts_of("fruit")}),
        "texts of 'tools-lora' are missing",
        "'fruit-lora': [...]",
    ),
    "texts of nobody": (
        lambda h: coterie.mix(h.experts(), router="linear").fit({"fruits": texts_of("fruit")}),
        "no expert is called 'fruits'",
        "did you mean 'fruit'?",
    ),
    "nothing to fit": (lambda h: coterie.mix(h.experts()).fit(texts_of("fruit")), "nothing of this mixture is fitted", ""),
    "no texts": (lambda h: coterie.mix(h.experts(), router="linear").fit([]), "there are no texts", "an empty list"),
    "texts of numbers": (
        lambda h: coterie.mix(h.experts(), router="linear").fit(["a b", 3]),  # type: ignore[list-item]
        "this is no text",
        "texts[1]",
    ),
    "texts in one go": (
        lambda h: coterie.mix(h.experts(), router="linear").fit(iter(["a", "b"])),  # type: ignore[arg-type]
        "these are no texts",
        "list(...)",
    ),
    "rows of two forms": (
        lambda h: coterie.mix(h.experts(), router="linear").fit([{"text": "a"}, {"text": "b", "time": "2016"}]),
        "rows have different columns",
        "texts[1]",
    ),
    "name twice": (lambda h: coterie.mix(h.experts()).add("fruit", llama(1)), "an expert is called 'fruit' already", ""),
    "nobody to remove": (lambda h: coterie.mix(h.experts()).remove("fruits"), "no expert is called 'fruits'", "'fruit'"),
    "the last": (lambda h: coterie.load(h.experts()["fruit"]).remove("fruit"), "no expert would be left", ""),
    "too long": (
        lambda h: coterie.mix(h.experts(), router="linear", sequence_length=128).fit(texts_of("fruit")),
        "a model reads shorter sequences",
        "at most 64",
    ),
    "no models": (lambda h: coterie.evaluate({}, texts_of("fruit")), "there are no models", ""),
    "two languages": (
        lambda h: coterie.evaluate({"A": h.experts()["fruit"], "B": llama(2, vocab_size=50)}, texts_of("fruit")),
        "different vocabularies",
        "train both with one tokenizer",
    ),
    "all": (lambda h: coterie.evaluate(h.experts(), {"all": texts_of("fruit")}), "'all' is that of all groups", ""),
    "train setting": (
        lambda h: coterie.train(h.base, texts_of("fruit"), learing_rate=1.0),  # type: ignore[call-arg]
        "unknown key",
        "did you mean 'learning_rate'?",
    ),
    "lora of a whole model": (
        lambda h: coterie.train(h.base, texts_of("fruit"), lora=coterie.Lora()),
        "ignored by this kind",
        "kind='lora'",
    ),
    "no held-out texts": (
        lambda h: coterie.train(h.base, texts_of("fruit"), early_stopping=coterie.EarlyStopping()),
        "early stopping needs held-out texts",
        "give valid=",
    ),
}


def without_base(house: House) -> Path:
    import shutil

    folder = house.out.parent / "without-base"
    if not folder.is_dir():
        shutil.copytree(house.experts("lora")["fruit-lora"], folder)
        shutil.rmtree(folder / "base")
        (folder / "manifest.json").unlink()  # it says that there is a base
    return folder


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_request_is_explained(house: House, name: str) -> None:
    asked, what, more = CASES[name]
    with pytest.raises(RequestError, match=re.escape(what)) as error:
        asked(house)
    assert more in str(error.value)
