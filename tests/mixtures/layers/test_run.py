"""Recipes with mixtures at layers, whole: merged, gated, tuned, evaluated, opened, cached."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.run.small import recipe

import coterie
from coterie.errors import RequestError
from coterie.mixtures.layers import tuning
from coterie.mixtures.layers.layers_mixture import LayersMixture
from coterie.run.parts import Parts
from coterie.store import Store

PAIR = {"at": "layers", "slots": ["fruit", "tools"]}
MIXTURES = [
    {"name": "equal", **PAIR},
    {"name": "drawn", **PAIR, "router": {"kind": "random", "top_k": 1}},
    {"name": "ridge", "at": "layers", "slots": {"fruit": 16, "tools": 16}, "router": {"kind": "ridge", "top_k": 2}},
    {"name": "own", **PAIR, "router": {"kind": "ridge", "features": "own", "bias": True}},
    {"name": "prompt", **PAIR, "router": {"kind": "prompt", "prompts": {"fruit": ["apple pear"], "tools": ["saw file"]}}},
    {"name": "label", **PAIR, "router": {"kind": "label", "tokens": 6000, "learning_rate": 0.1, "batch_size": 4}},
    {"name": "learned", **PAIR, "router": {"kind": "learned", "balance": 0.01, "z": 0.001}, "tune": {"tokens": 1000}},
    {"name": "both", **PAIR, "router": "ridge", "tune": {"what": "gate+experts", "tokens": 1000}},
    {"name": "whole", **PAIR, "router": {"kind": "random", "top_k": 1}, "tune": {"what": "all", "tokens": 1000}},
]


def asked(folder: Path, **changes: Any) -> dict[str, Any]:
    made = recipe(folder, **changes)
    for expert in made["experts"]:
        expert.setdefault("kind", "ffn")
    return made


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layers")


@pytest.fixture(scope="module")
def run(home: Path) -> Any:
    return coterie.run(asked(home / "data", mixtures=copy.deepcopy(MIXTURES)), store=home / "store", out=home / "out")


def ids(model: Any) -> torch.Tensor:
    return torch.randint(3, model.config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))


def test_every_mixture_is_evaluated_and_its_routing_reported(run: Any) -> None:
    table = run.summary["evaluation"]["losses"]
    for spec in MIXTURES:
        assert 0 < table[spec["name"]]["all"]["nll"] < 8
        routing = run.summary["routing"][spec["name"]]
        assert routing["experts"] == ["fruit", "tools"]
        assert sum(routing["utilization"]) == pytest.approx(1, abs=1e-4)
    assert len(run.summary["slots"]["ridge"]) == 32


def test_the_report_says_how_right_gates_are_and_what_they_cannot_tell_apart(run: Any, home: Path) -> None:
    accuracy = run.summary["routing"]["label"]["gate_accuracy"]
    assert accuracy.keys() == {"fruit", "tools"}
    assert all(0.5 < share <= 1 for share in accuracy.values())
    assert "gate_accuracy" in run.summary["routing"]["ridge"]
    assert "ridge: slots of one expert cannot be told apart: fruit (16 slots), tools (16 slots)" in run.summary["notes"]
    page = (home / "out/report.html").read_text()
    assert "gate accuracy, fruit" in page
    assert "cannot be told apart" in page


def test_it_opens_by_itself_and_answers(run: Any, home: Path) -> None:
    for spec in MIXTURES:
        model = coterie.load(home / "out/mixtures" / spec["name"])
        assert isinstance(model, LayersMixture)
        assert model.log_probs(ids(model)).exp().sum(-1).sub(1).abs().max() < 1e-5
        assert isinstance(model.complete("apple", max_new_tokens=3), str)


def test_the_scores_are_those_of_the_model(run: Any, home: Path) -> None:
    """What the evaluation read from the store is what the opened model says of the same blocks."""
    c = Parts(run.recipe, Store(home / "store"))
    for spec in run.recipe.mixtures:
        model = coterie.load(home / "out/mixtures" / spec.name)
        for corpus in ("fruit", "tools"):
            blocks, scores = c.blocks(corpus, "test"), spec.scores(c, c.blocks(corpus, "test"))
            files = load_file(blocks.file("blocks.safetensors"))
            position, counted = files["position"].long(), files["target"][:, 1:] != 0
            nll = model.nll(files["ids"].long(), position_ids=position)[counted]
            logp = load_file(scores.file("scores.safetensors"))["logp"][counted]
            assert (logp + nll).abs().max() < 1e-5
            assert scores.facts["nll"] == pytest.approx(nll.mean().item(), abs=1e-5)
            weight_BTS = model.weights(files["ids"].long(), position_ids=position)[:, :-1][counted]
            use_U = torch.zeros(2).index_add(0, torch.tensor(model.config.slot_to_expert), weight_BTS.mean(0))
            assert scores.facts["utilization"] == pytest.approx(use_U.tolist(), abs=1e-5)
            assert len(scores.facts["by_layer"]) == 1
            assert scores.facts["by_layer"][0] == pytest.approx(use_U.tolist(), abs=1e-5)
            assert sum(scores.facts["chosen"]) == pytest.approx(1)


def test_a_gate_that_knows_the_domains_uses_them(run: Any) -> None:
    for name in ("ridge", "own", "label"):
        by_group = run.summary["routing"][name]["by_group"]
        assert by_group["fruit"][0] - by_group["tools"][0] > 0.2, name
        nll = run.summary["evaluation"]["losses"]
        assert nll[name]["all"]["nll"] < nll["equal"]["all"]["nll"] + 0.02


def test_slots_of_one_expert_have_equal_rows(home: Path, run: Any) -> None:
    model = coterie.load(home / "out/mixtures/ridge")
    assert len(model.slots) == 32
    for gate in model.router:
        assert torch.equal(gate.weight, gate.weight[[0] * 16 + [16] * 16])
        assert not torch.equal(gate.weight[0], gate.weight[16])
    assert len(model.blocks[0].experts) == 2


def moved(home: Path, name: str, start: str) -> dict[str, bool]:
    one, two = (coterie.load(home / "out/mixtures" / n).state_dict() for n in (start, name))
    return {key: not torch.equal(one[key], two[key]) for key in one}


@pytest.mark.parametrize(("name", "start"), [("learned", "equal"), ("both", "equal"), ("whole", "drawn")])
def test_only_what_the_table_says_moves(name: str, start: str, home: Path, run: Any) -> None:
    for key, changed in moved(home, name, start).items():
        gate, expert = ".gate." in key, ".experts." in key
        assert changed == {"learned": gate, "both": gate or expert, "whole": True}[name], key


@pytest.mark.parametrize("what", ["gate", "all"])
def test_a_cut_off_tuning_is_the_straight_one(what: str, home: Path, run: Any, monkeypatch: Any) -> None:
    """Killed after a checkpoint and gone on from: the same bytes."""
    tune = {"what": what, "tokens": 1500, "train": {"save_every": 300, "learning_rate": 1e-2, "precision": "fp32"}}
    spec = {"name": "m", **PAIR, "router": {"kind": "learned", "top_k": 1, "balance": 0.01}, "tune": tune}
    made = asked(home / "data", mixtures=[spec], evaluation=[])

    class StopError(Exception):
        pass

    passes, original = [0], tuning.ByText.__call__

    def cut(*given: Any) -> torch.Tensor:
        passes[0] += 1
        if passes[0] == 5:
            raise StopError
        return original(*given)

    def tuned(name: str) -> dict[str, bytes]:
        """In a store that has all but the tuning."""
        store, out = home / f"{name}-{what}", home / f"{name}-{what}-out"
        if not store.exists():
            copytree(home / "store", store)
        coterie.run(copy.deepcopy(made), store=store, out=out, until="mixtures")
        return {p.name: p.read_bytes() for p in (out / "mixtures" / "m").rglob("*.safetensors")}

    straight = tuned("straight")
    monkeypatch.setattr(tuning.ByText, "__call__", cut)
    with pytest.raises(StopError):
        tuned("cut")
    assert list((home / f"cut-{what}" / "work").glob("*/checkpoint-*"))
    monkeypatch.setattr(tuning.ByText, "__call__", original)
    assert tuned("cut") == straight


def test_mixtures_of_the_same_experts_share_them_in_the_store(run: Any, home: Path) -> None:
    merged = [f for f in (home / "store/merged").iterdir() if not (f / "gates.safetensors").exists()]
    assert len(merged) == 1
    sizes = [sum(f.stat().st_size for f in d.rglob("*.safetensors")) for d in (home / "store/mixtures").iterdir()]
    assert max(sizes) < 10_000


def test_a_second_run_makes_nothing_and_loads_no_torch(run: Any, home: Path) -> None:
    again = asked(home / "data", mixtures=copy.deepcopy(MIXTURES))
    plan = coterie.run(again, store=home / "store", out=home / "out", dry_run=True).plan
    assert not plan.missing
    fresh = coterie.run(again, store=home / "elsewhere", out=home / "out", dry_run=True).plan
    assert sum(step.kind == "merged" and not step.cached for step in fresh) >= 3


def test_one_more_slot_or_another_name_merges_nothing_again(run: Any, home: Path) -> None:
    other = [{"name": "renamed", "at": "layers", "slots": ["fruit", "tools", "tools"], "router": "ridge"}]
    plan = coterie.run(
        asked(home / "data", mixtures=other), store=home / "store", out=home / "other", dry_run=True, until="mixtures"
    ).plan
    assert [(s.kind, "cached" if s.cached else "make") for s in plan if s.kind in ("experts", "merged", "gates")] == [
        ("experts", "cached"),
        ("experts", "cached"),
        ("experts", "cached"),
        ("merged", "cached"),
        ("gates", "make"),
    ]


def test_full_experts_need_a_rule_and_its_cost_is_measured(home: Path) -> None:
    made = recipe(home / "data", mixtures=[{"name": "m", **PAIR}], evaluation=[], single=False)
    with pytest.raises(RequestError, match="kind full"):
        coterie.run(made, store=home / "store", out=home / "full")
    for rule in ("base", "average"):
        made["mixtures"][0]["shared"] = rule
        done = coterie.run(made, store=home / "store", out=home / f"full-{rule}")
        figures = json.loads((home / f"full-{rule}/mixtures/m/facts.json").read_text())["exactness"]
        assert len(figures) == 2
        for cost in figures:
            assert cost["largest_difference"] > 1e-4
            assert cost["nll_merged"] != cost["nll_alone"]
        assert done.summary["mixtures"]


def test_adapters_of_feed_forward_linears_merge_exactly(home: Path) -> None:
    made = asked(home / "data", mixtures=[{"name": "m", **PAIR}], single=False)
    for expert in made["experts"]:
        expert |= {"kind": "lora", "lora": {"r": 2, "targets": ["gate_proj", "up_proj", "down_proj"]}}
    done = coterie.run(made, store=home / "store", out=home / "lora")
    model = coterie.load(home / "lora/mixtures/m")
    for u, name in enumerate(("fruit", "tools")):
        with model.only(u):
            alone = coterie.load(home / "lora/experts" / name)
            assert (model.log_probs(ids(model)) - alone.log_probs(ids(model))).abs().max() < 1e-5
    assert done.summary["evaluation"]["losses"]["m"]


def test_models_and_adapters_made_elsewhere_are_experts(home: Path, run: Any) -> None:
    """As a person brings them who merged with another tool: a base, whole models of it, an adapter, none trained here."""
    base, models = home / "out/base", home / "out/experts"
    adapter = next(f.parent for f in (home / "store/experts").glob("*/adapter_model.safetensors"))
    elsewhere = {
        "name": "brought",
        "sequence_length": 32,
        "base": {"path": str(base)},
        "corpora": run.recipe.model_dump(mode="json", include={"corpora": {"fruit", "tools"}})["corpora"],
        "experts": [
            {"name": "one", "model": str(models / "fruit")},
            {"name": "two", "model": str(models / "tools"), "kind": "ffn", "corpus": "tools"},
            {"name": "low", "adapter": str(adapter)},
        ],
        "mixtures": [{"name": "m", "at": "layers", "slots": ["one", "two", "low"]}],
    }
    done = coterie.run(elsewhere, store=home / "store", out=home / "brought", until="mixtures")
    model = coterie.load(home / "brought/mixtures/m")
    with model.only(1):
        tools = coterie.load(models / "tools")
        assert (model.log_probs(ids(model)) - tools.log_probs(ids(model))).abs().max() < 1e-5
    assert done.summary["reuse"] == {"requested": 3, "distinct": 3, "trained": 0, "reused": 0, "finished": 3}
    elsewhere["experts"][0]["model"] = str(home / "full-base/experts/fruit")
    with pytest.raises(RequestError, match="differs from the base outside"):
        coterie.run(elsewhere, store=home / "store", out=home / "differs", until="mixtures")
    elsewhere["mixtures"][0]["shared"] = "base"
    coterie.run(elsewhere, store=home / "store", out=home / "ruled", until="mixtures")
    costs = json.loads((home / "ruled/mixtures/m/facts.json").read_text())["exactness"]
    assert [cost is None for cost in costs] == [True, False, True]
    assert costs[1]["largest_difference"] < 1e-5


def test_the_flat_form_merges_too(home: Path) -> None:
    made = asked(home / "data")
    flat = {k: made[k] for k in ("name", "sequence_length", "base", "corpora", "train")}
    flat |= {"datasets": ["fruit"] * 16 + ["tools"] * 16, "at": "layers", "kind": "ffn", "router": "ridge"}
    coterie.run(flat, store=home / "store", out=home / "flat", until="mixtures")
    assert len(coterie.load(home / "flat/mixtures/mixture").slots) == 32
