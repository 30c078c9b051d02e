"""A strategy is one declaration: what a recipe accepts, what errors list, what is compared and what the docs show."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.select.texts import corpus, rows, write

from coterie.errors import RequestError
from coterie.recipe import read
from coterie.select import strategies
from coterie.select.candidates import Candidates
from coterie.select.plan_settings import Axis, Rank
from coterie.select.profiled_corpus import Profiled, profile_corpus
from coterie.select.selection import selection
from coterie.select.selection_report import report
from coterie.select.strategies import STRATEGIES, Strategy
from coterie.store import Store

PAGE = Path(__file__).parents[2] / "docs/concepts/selection.md"


def longest(pool: Candidates) -> np.ndarray:
    return pool.tokens_N.astype(float)


def only_notes(axes: Any, pool: Candidates) -> dict[str, Axis]:
    return {"format": axes["format"].model_copy(update={"target": {"note": 1.0}, "mix": None})}


def best_first(rank: Rank) -> Rank:
    return Rank(quality=1, length=0, temperature=0)


@pytest.fixture
def toys() -> Iterator[None]:
    added = [
        Strategy("longest", "The longest documents.", score=longest),
        Strategy("notes", "Notes alone, the best first.", axes=only_notes, rank=best_first),
        Strategy("strict", "The recipe's shares, the best first.", rank=best_first, paper="None 1999"),
    ]
    for toy in added:
        STRATEGIES.add(toy)
    yield
    for toy in added:
        del STRATEGIES[toy.tag]


def profiled(folder: Path, **select: Any) -> Profiled:
    path = str(write(folder / "c.jsonl", rows(150)))
    asked = {"budget": {"docs": 5}, "axes": {"format": {"target": {"story": 0.6, "lesson": 0.4}}}, **select}
    return profile_corpus(Store(folder / "store"), corpus(path, asked), label="c")


def refused(strategy: str) -> str:
    select = {"budget": {"docs": 3}, "strategy": strategy}
    with pytest.raises(RequestError) as caught:
        read({"name": "x", "corpora": {"c": {"path": "x.csv", "select": select}}, "experts": [{"name": "e", "corpus": "c"}]})
    return str(caught.value)


@pytest.mark.usefixtures("toys")
def test_toy_strategies_choose_are_compared_listed_and_documented(tmp_path: Path) -> None:
    made = profiled(tmp_path, strategy="longest")
    table = pl.read_parquet(selection(made).file("selected.parquet"))
    assert sorted(table["tokens"], reverse=True) == sorted(made.candidates.tokens_N.tolist(), reverse=True)[:5]
    made = profiled(tmp_path, strategy="notes")
    table = pl.read_parquet(selection(made).file("selected.parquet"))
    assert table["format"].to_list() == ["note"] * 5
    compared = report(made, made.chosen)["comparison"]["strategies"]
    assert {"longest", "notes", "strict", "random"} <= compared.keys()
    assert compared["longest"]["mean_tokens"] > compared["random"]["mean_tokens"]
    assert "expected: longest, " in refused("longst")
    assert "| `notes` | Notes alone, the best first. | `axes`, `rank` |" in strategies.docs_table()
    assert "| `strict` | The recipe's shares, the best first. | `rank` | None 1999 |" in strategies.docs_table()


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(("strategy", "yes"), [("plan", False), ("strict", False), ("random", True)])
def test_targets_bind_a_strategy_that_keeps_the_recipes_axes(tmp_path: Path, strategy: str, yes: bool) -> None:
    """More stories than there are: only what plans these shares can miss them."""
    made = profiled(
        tmp_path, strategy=strategy, axes={"format": {"target": {"note": 0.9, "story": 0.1}}}, budget={"docs": 60}
    )
    if yes:
        assert selection(made).facts["feasible"]
        return
    with pytest.raises(RequestError, match="the plan cannot be met"):
        selection(made)


def test_what_a_strategy_says_it_replaces_is_what_changes_nothing(tmp_path: Path) -> None:
    """Another value of a setting that is not replaced may choose others; of one that is, it never does."""
    other = {"axes": {"format": {"mix": 1.0}}, "rank": {"quality": 0.0, "length": 1.0}}
    for tag, strategy in STRATEGIES.items():
        first = selection(profiled(tmp_path, strategy=tag)).content("selected.parquet")
        for key, value in other.items():
            alike = selection(profiled(tmp_path, strategy=tag, **{key: value})).content("selected.parquet") == first
            if tag in ("random", "published") and key in strategy.replaces:
                assert alike, (tag, key)
            if key not in strategy.replaces:
                assert not alike, (tag, key)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="the name of a strategy already"):
        STRATEGIES.add(replace(STRATEGIES["random"]))


@pytest.mark.parametrize(("written", "first"), [("randm", "random"), ("ballanced", "balanced"), ("plans", "plan")])
def test_an_unknown_strategy_lists_those_there_are_the_nearest_first(written: str, first: str) -> None:
    message = refused(written)
    assert "corpora.c.select.strategy" in message
    assert f"no strategy is called {written!r}" in message
    assert f"expected: {first}, " in message
    assert all(tag in message for tag in STRATEGIES)


def test_the_docs_show_the_declared_strategies() -> None:
    shown = PAGE.read_text().partition("<!-- strategies: start -->\n")[2].partition("\n<!-- strategies: end -->")[0]
    assert shown == strategies.docs_table()


def test_declarations_bring_nothing_heavy_with_them() -> None:
    code = "import sys, coterie.select.strategies; print(*{'numpy', 'pyarrow', 'polars', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
