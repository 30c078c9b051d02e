"""What a selection may say, and experts per value of an axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coterie.errors import RequestError
from coterie.recipe import read
from coterie.select.select_settings import Select


def recipe(select: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"name": "r", "seed": 7, "corpora": {"prose": {"path": "p.jsonl", "select": select}}, **changes}


BUDGET = {"budget": {"docs": 10}}


@pytest.mark.parametrize(
    ("select", "says"),
    [
        ({}, "missing"),
        ({"budget": {}}, "exactly one of tokens, docs"),
        ({"budget": {"docs": 3, "tokens": 3}}, "exactly one of tokens, docs"),
        ({**BUDGET, "axes": {"format": {"target": {"a": 0.5, "b": 0.4}}}}, "sum to 0.9: they must sum to 1"),
        ({**BUDGET, "axes": {"format": {"target": {}}}}, "empty target"),
        ({**BUDGET, "axes": {"format": {"target": {"a": 1.0}, "mix": 0.2}}}, "either target or mix"),
        ({**BUDGET, "axes": {"format": {"k": 3}}}, "format.k is for the fitted clusters"),
        ({**BUDGET, "axes": {"cluster": {}, "cluster_group": {}}}, "'cluster_group' is the fitted clusters' groups"),
        ({**BUDGET, "axes": {"cluster": {"model": "x", "k": 3}}}, "brings its own k"),
        ({**BUDGET, "rank": {"within": "format"}}, "names no axis"),
        ({**BUDGET, "rank": {"ranges": {"a": [1, 2]}}}, "needs rank.within"),
        ({**BUDGET, "keep": {"tokens": [5, 3]}}, "above the most"),
        ({**BUDGET, "tokens": {}}, "either column or tokenizer"),
        ({**BUDGET, "filter": {}}, "unknown key"),
        ({**BUDGET, "budjet": 3}, "unknown key"),
    ],
)
def test_what_is_wrong_is_said(select: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(recipe(select, experts=[{"name": "e", "corpus": "prose"}]))
    assert says in str(caught.value)
    assert "corpora.prose.select" in str(caught.value)


def test_seed_and_paths_come_from_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "corpora:\n  prose:\n    path: p.jsonl\n    select:\n      budget: {docs: 3}\n"
        "      axes: {cluster: {model: topics}}\n      keep: {contamination: {path: [e.jsonl]}}\n"
        "      tokens: {tokenizer: tok}\nseed: 7\n"
    )
    asked = read(tmp_path / "r.yaml", selecting=True)
    select = asked.corpora["prose"].select
    assert select is not None
    assert select.seed == 7
    assert select.axes["cluster"].model == str(tmp_path / "topics")
    assert select.keep.contamination is not None
    assert select.keep.contamination.path == (str(tmp_path / "e.jsonl"),)
    assert select.tokens is not None
    assert select.tokens.tokenizer == str(tmp_path / "tok")
    assert asked.corpora["prose"].split.valid == 0, "a file that only selects holds nothing out"
    with pytest.raises(RequestError):
        read(tmp_path / "r.yaml")


MIXTURE = {"name": "m", "at": "outputs", "slots": ["e*"], "router": "uniform"}
ALONE: list[dict[str, Any]] = [
    {},
    {"experts": []},
    {"experts": None},
    {"mixtures": [MIXTURE]},
    {"experts": [], "mixtures": [MIXTURE], "evaluation": [{"name": "losses", "corpora": ["prose"]}], "single": True},
    {"base": {"init": "llama", "pretrain": {"corpora": ["prose"], "tokens": 10}}, "train": {"tokens": 5}},
]


@pytest.mark.parametrize("more", ALONE, ids=lambda more: " ".join(more) or "corpora alone")
def test_a_recipe_without_experts_only_selects(more: dict[str, Any]) -> None:
    asked = read(recipe(BUDGET, **more), selecting=True)
    assert asked.corpora["prose"].split.valid == 0, "nothing is held out"
    with pytest.raises(RequestError, match="the recipe only selects") as caught:
        read(recipe(BUDGET, **more))
    assert "coterie select pick" in str(caught.value)
    assert "experts" in str(caught.value)


@pytest.mark.parametrize("more", ALONE, ids=lambda more: " ".join(more) or "corpora alone")
def test_a_recipe_without_experts_and_selections_misses_experts(more: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        read({"name": "r", "corpora": {"prose": {"path": "p.jsonl"}}, **more})
    assert "select" not in str(caught.value)


def test_what_trains_holds_out_what_it_trains_without() -> None:
    """Experts of a mixture are experts: `coterie select` chooses from what the run chooses from."""
    joint = {
        "name": "m",
        "at": "adapters",
        "router": "learned",
        "joint": {"experts": 2, "lora": {"r": 2, "alpha": 4}, "corpora": {"prose": 1.0}, "tokens": 100},
    }
    base = {"init": "llama", "hidden_size": 16, "layers": 1, "heads": 2}
    made = recipe(BUDGET, base=base, mixtures=[joint])
    assert read(made, selecting=True).corpora == read(made).corpora


def test_an_empty_selection_misses_its_budget() -> None:
    with pytest.raises(RequestError) as caught:
        read(recipe({}), selecting=True)
    assert "corpora.prose.select.budget" in str(caught.value)


def test_experts_per_cluster_group_and_value() -> None:
    select = {**BUDGET, "axes": {"cluster": {"k": 3, "groups": 2}, "format": {"target": {"Novel": 0.5, "lesson": 0.5}}}}
    clusters = read(recipe(select, experts={"per": "cluster", "kind": "lora", "train": {"tokens": 5}}))
    assert [(e.name, e.corpus, e.kind, e.where) for e in clusters.experts] == [
        (f"c0{i}", "prose", "lora", {"cluster": f"c0{i}"}) for i in range(3)
    ]
    groups = read(recipe(select, experts={"per": "cluster_group", "name": "topic-{value}"}))
    assert [(e.name, e.where) for e in groups.experts] == [(f"topic-g{i}", {"cluster_group": f"g{i}"}) for i in range(2)]
    formats = read(recipe(select, experts={"per": "format", "only": ["Novel"], "where": {"lang": "en"}}))
    assert [(e.name, e.where) for e in formats.experts] == [("novel", {"lang": "en", "format": "Novel"})]
    slots = read(
        recipe(
            select,
            experts={"per": "cluster"},
            mixtures=[{"name": "m", "at": "outputs", "slots": ["c*"], "router": "uniform"}],
        )
    )
    assert list(slots.mixtures[0].slots) == ["c00", "c01", "c02"]
    shared = read(recipe(select, experts={"per": "cluster"}, train={"tokens": 77}))
    assert shared.experts[0].train.tokens == 77


@pytest.mark.parametrize(
    ("axes", "experts", "says"),
    [
        ({"cluster": {"k": "auto"}}, {"per": "cluster"}, "give k as a number"),
        ({"cluster": {}}, {"per": "cluster_group"}, "set the axis's groups"),
        ({"cluster": {}}, {"per": "topic"}, "no axis is called 'topic'"),
        ({"format": {"target": {"a|b": 1.0}}}, {"per": "format"}, "names each value"),
        ({"cluster": {}}, {"kind": "full"}, "per: cluster"),
        ({"cluster": {}}, {"per": "cluster", "name": "x"}, "needs {value}"),
        ({"cluster": {"k": 2}}, {"per": "cluster", "only": ["c07"]}, "c00, c01"),
        ({"cluster": {}}, {"per": "cluster", "corpus": "none"}, "a selection"),
    ],
)
def test_experts_that_cannot_be_known(axes: dict[str, Any], experts: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(recipe({**BUDGET, "axes": axes}, experts=experts))
    assert says in str(caught.value)


def test_a_column_of_the_axis_name_is_the_default() -> None:
    select = Select.model_validate({**BUDGET, "axes": {"format": {}, "who": {"column": "audience"}, "cluster": {}}})
    assert select.columns == {"format": "axes.format.column", "audience": "axes.who.column"}


def test_a_resolved_recipe_with_a_selection_reads_back() -> None:
    made = read(recipe({**BUDGET, "axes": {"format": {}, "cluster": {"k": 3}}}, experts={"per": "cluster"}))
    assert read(made.model_dump(mode="json", by_alias=True)).hash == made.hash
