"""A kind is one declaration: what one file of toys/ says is in the recipe, its errors, the reference and the invariants."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.house.toys import halves, recency, sure
from tests.invariants import cases
from tests.run.small import BASE, recipe

import coterie
from coterie.errors import RequestError
from coterie.mixtures.adapters.adapter_routers import AdapterGate
from coterie.mixtures.layers.layer_gates import LayerGate
from coterie.recipe import read
from coterie.recipe.reference import markdown
from coterie.report import terminal
from coterie.routing.output_routers import OutputRouter

TOYS = (recency.Recency, halves.HalvesAtLayers, halves.HalvesAtAdapters, sure.Sure)


def test_toys_are_known_by_being_defined() -> None:
    assert OutputRouter.named("recency") is recency.Recency
    assert LayerGate.named("halves") is halves.HalvesAtLayers
    assert AdapterGate.named("halves") is halves.HalvesAtAdapters


@pytest.mark.parametrize("toy", TOYS)
def test_the_reference_shows_a_toy_with_every_setting(toy: type) -> None:
    page = markdown()
    title = f"## {toy.noun}: {toy.tag()}\n"
    assert title in page
    part = page[page.index(title) :].split("\n## ")[0]
    assert toy.sentence().split(".")[0] in part
    assert all(f"| `{name}` |" in part for name in toy.model_fields)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"mixtures": [{"name": "m", "at": "outputs", "slots": ["fruit"], "router": "recencyy"}]}, "recency, "),
        ({"mixtures": [{"name": "m", "at": "layers", "slots": ["fruit"], "router": "halvess"}]}, "halves, "),
        ({"mixtures": [{"name": "m", "at": "adapters", "slots": ["fruit"], "router": "halvess"}]}, "halves, "),
        ({"evaluation": [{"name": "e", "kind": "sur", "sure": "fruit"}]}, "sure, "),
    ],
)
def test_a_misspelt_kind_is_told_the_nearest_first(tmp_path: Path, changes: dict, names: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(recipe(tmp_path, **changes))
    assert caught.value.expected.startswith(names)
    assert f"did you mean {names[:-2]!r}?" in caught.value.do
    assert caught.value.where.endswith((".kind", ".router.kind"))


def test_an_unknown_key_is_told_the_keys_of_that_kind(tmp_path: Path) -> None:
    router = {"kind": "recency", "strt": 1.0}
    with pytest.raises(RequestError) as caught:
        read(recipe(tmp_path, mixtures=[{"name": "m", "at": "outputs", "slots": ["fruit"], "router": router}]))
    listed = caught.value.expected.split(", ")
    assert listed[0] == "start"
    assert set(listed) == set(recency.Recency.model_fields)


def test_the_invariants_take_a_toy_up() -> None:
    """Their cases come from the declarations; here one of them, on the toy alone."""
    found = [kind.model_validate(settings) for kind in OutputRouter.members() for settings in kind.examples]
    toys = [router for router in found if isinstance(router, recency.Recency)]
    assert len(toys) == 2
    ids = cases.ids()
    for router in toys:
        expert = cases.some([1])[0]
        made = cases.mixture([expert, expert], recipe=router, counts=[2, 1])
        alone = torch.nn.functional.log_softmax(expert(ids).logits.detach(), -1)
        assert (made.log_probs(ids, time="2017-01-01") - alone).abs().max() < 1e-5


def test_toys_run_whole(tmp_path: Path) -> None:
    raw = recipe(tmp_path / "data")
    raw["base"] = {**BASE, "pretrain": raw["base"]["pretrain"]}
    raw["single"] = False
    raw["train"]["tokens"] = 600
    raw["experts"] = [
        *({"name": n, "corpus": n, "kind": "ffn"} for n in ("fruit", "tools")),
        *({"name": f"lora-{n}", "corpus": n, "kind": "lora", "lora": {"r": 2}} for n in ("fruit", "tools")),
    ]
    raw["mixtures"] = [
        {"name": "recency", "at": "outputs", "slots": ["fruit", "tools"], "router": {"kind": "recency", "epochs": 1}},
        {"name": "layers", "at": "layers", "slots": ["fruit", "tools"], "router": "halves"},
        {"name": "adapters", "at": "adapters", "slots": ["lora-fruit", "lora-tools"], "router": "halves"},
    ]
    raw["evaluation"].append({"name": "one", "sure": "fruit"})
    run = coterie.run(raw, store=tmp_path / "store", out=tmp_path / "out")
    table = run.summary["evaluation"]["one"]
    assert {"recency", "layers", "adapters", "oracle"} <= table.keys()
    assert table["oracle"]["all"]["sure"] == max(table[name]["all"]["sure"] for name in run.experts)
    assert terminal(run.summary).count("(percent of tokens sure, higher is better; * best model)") == 1
    assert "In percent of tokens sure, higher is better" in (tmp_path / "out" / "report.html").read_text()
    assert run.summary["differences"]["one"]["recency"]["best_expert"]["all"].keys() == {"sure", "ci95", "documents"}
    ids = torch.randint(1, 200, (1, 8))
    for mixture in run.mixtures.values():
        assert torch.allclose(mixture.log_probs(ids).exp().sum(-1), torch.ones(1, 8), atol=1e-5)
