"""A column may be called anything, also what our own code uses: it is kept, and plans, labels and counts as any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.select.texts import corpus, rows, write

from coterie.corpora.blocks import Blocks, pack_blocks
from coterie.corpora.row_plan import OWN, USERS
from coterie.corpora.tokenizer import TrainedTokenizer, make_tokenizer
from coterie.errors import RequestError
from coterie.evaluation.losses import _column
from coterie.recipe.select_forms import per_axis
from coterie.select.chosen_corpus import selected_documents
from coterie.select.profiled_corpus import profile_corpus
from coterie.select.selection import selection, why, write_selected
from coterie.select.selection_page import page
from coterie.select.selection_report import report
from coterie.select.selector import Selector
from coterie.store import Store

OURS = [
    *OWN,
    *"key chars words sentences marks wide flesch richness repetition complete quality tokens contaminated".split(),
    *"exact_tokens token_error dropped shard row cluster cluster_group undated cell merit score scores reason".split(),
    *"quality_rank length_score format label turn target document position like jaccard".split(),
]
"""Every name that columns of our own have somewhere, in files or in memory."""
ODD = [
    "a.b",
    "body.length",
    "doc.x",
    "id.x",
    "two words",
    "größe",
    "東京",
    "^x.*$",
    "*",
    "{x}",
    "a/b",
    "",
    "column",
    "plugged topic",
]
HOSTILE = [*OURS, *ODD, *(f"{USERS}{name}" for name in ("split", "tokens", "cluster", "x", f"{USERS}split"))]
TARGET = {"story": 0.5, "lesson|note": 0.5}
SMALL: dict[str, Any] = {"budget": {"docs": 16}, "relax": True, "keep": {"near_dup": None}}


def renamed(path: Path, **names: str) -> str:
    """Rows with text `body`, id `doc` and further columns under other names, as a Parquet file."""
    made = pl.DataFrame(rows(40)).with_columns(group=pl.col("format"), amount=pl.Series(range(10, 50)))
    made = made.rename({"text": "body", "id": "doc", "format": "form", "topic": "subject"})
    made.rename({old: new for old, new in names.items() if old != new}).write_parquet(path)
    return str(path)


def ids(store: Store, path: str, select: dict[str, Any], **more: Any) -> list[str]:
    data = profile_corpus(store, corpus(path, {**SMALL, **select}, **{"text": "body", "id": "doc", **more}), label="c")
    return pl.read_parquet(selection(data).file("selected.parquet"))["id"].to_list()


SELECTS = (
    ("form", {"axes": {"kind": {"column": "NAME", "target": TARGET}}}),
    ("amount", {"rank": {"by": "NAME"}, "tokens": {"column": "NAME"}}),
)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """What these selections choose where the columns have plain names."""
    return chosen_by(tmp_path_factory.mktemp("plain"), None)


def chosen_by(folder: Path, name: str | None) -> list[list[str]]:
    """The documents of a plan by a column, and of a rank and a count by one, whatever the column is called."""
    found, store = [], Store(folder / "store")
    for old, select in SELECTS:
        new = old if name is None else name
        named = json.loads(json.dumps(select).replace('"NAME"', json.dumps(new)))
        found.append(ids(store, renamed(folder / "a.parquet", **{old: new}), named, columns=[new, "subject"]))
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_a_column_plans_ranks_and_counts_whatever_it_is_called(tmp_path: Path, expected: list[list[str]], name: str) -> None:
    assert chosen_by(tmp_path, name) == expected


@given(st.text(min_size=1, max_size=12).filter(lambda s: s.isprintable() and s not in ("doc", "body", "subject", "points")))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_so_does_a_column_of_any_name(tmp_path: Path, expected: list[list[str]], name: str) -> None:
    assert chosen_by(tmp_path, name) == expected


@pytest.mark.parametrize("name", "text split row key quality tokens cluster_group dropped id reason score".split())
def test_an_axis_may_be_called_like_a_column_of_ours(tmp_path: Path, expected: list[list[str]], name: str) -> None:
    store, path = Store(tmp_path / "store"), renamed(tmp_path / "a.parquet", form=name)
    assert ids(store, path, {"axes": {name: {"target": TARGET}}}) == expected[0]


def test_the_documents_own_id_and_date_are_columns_like_others(tmp_path: Path) -> None:
    made = [{**row, "time": f"201{i % 3}-01-01"} for i, row in enumerate(rows(80))]
    select = {**SMALL, "axes": {"year": {"column": "time", "mix": 1.0}, "one": {"column": "id"}}}
    data = profile_corpus(
        Store(tmp_path / "s"), corpus(str(write(tmp_path / "a.jsonl", made)), select, time="time"), label="c"
    )
    assert data.candidates.labels["year"].values == ["2010-01-01", "2011-01-01", "2012-01-01"]
    assert len(data.candidates.labels["one"].values) == 80


def test_columns_of_every_name_are_kept_reported_and_asked_for(tmp_path: Path) -> None:
    made = [{**dict.fromkeys(HOSTILE, row["format"]), "doc": row["id"], "body": row["text"]} for row in rows(80)]
    spec = corpus(
        str(write(tmp_path / "a.jsonl", made)),
        {**SMALL, "axes": {"tokens": {"column": "cluster", "target": TARGET}, "quality": {}}},
        text="body",
        id="doc",
        columns=HOSTILE,
    )
    store = Store(tmp_path / "s")
    data = profile_corpus(store, spec, label="c")
    assert {"tokens", "quality"} < data.candidates.labels.keys()
    assert len(data.candidates.labels) == len(HOSTILE)
    figures = report(data, data.chosen)
    assert "cluster" not in figures["unused_labels"]
    assert page(figures)
    assert why(data, data.chosen, "d0")
    write_selected(tmp_path / "selected.jsonl", data, data.chosen)
    first = json.loads((tmp_path / "selected.jsonl").read_text().splitlines()[0])
    kind = first["a.b"]
    assert first["id"].startswith("d")
    assert {first[f"{USERS}{n}"] for n in ("id", "text", "tokens", "reason")} | {first["cluster"]} == {kind}

    documents = selected_documents(store, spec, label="c")
    tokenizer = make_tokenizer(store, TrainedTokenizer(train="bpe", vocab_size=300), [documents], label="t")
    split = {"split": "train", "length": 32, "label": "b"}
    stories = sum(row[f"{USERS}split"] == "story" for row in pl.read_parquet(documents.file("documents.parquet")).to_dicts())
    for name in HOSTILE:
        blocks = Blocks.open(pack_blocks(store, documents, tokenizer, where={name: "story"}, **split))
        assert len(blocks.documents) == stories
        assert set(_column(blocks.documents, "e", name, "c")) == {"story"}


def test_fitted_clusters_stand_beside_a_column_of_their_name(tmp_path: Path) -> None:
    path = renamed(tmp_path / "a.parquet", form="cluster", group="cluster_group")
    select = {"axes": {"cluster": {"k": 3, "groups": 2}, "kind": {"column": "cluster", "target": TARGET}}}
    spec = corpus(path, {**SMALL, **select}, text="body", id="doc", columns=["cluster", "cluster_group"])
    store = Store(tmp_path / "s")
    data = profile_corpus(store, spec, label="c")
    assert data.candidates.labels["cluster"].values == ["c00", "c01", "c02"]
    assert data.candidates.labels["kind"].values == ["lesson", "note", "story"]
    made = pl.read_parquet(selected_documents(store, spec, label="c").file("documents.parquet"))
    assert set(made["cluster"]) <= {"c00", "c01", "c02"}

    recipe = {"corpora": {"c": {"path": path, "select": {**SMALL, **select}}}, "experts": {"per": "kind"}}
    recipe["corpora"]["c"]["select"]["axes"]["kind"]["target"] = {"story": 1.0}
    with pytest.raises(RequestError, match="the fitted clusters") as refused:
        per_axis(recipe)
    assert refused.value.where == "experts.per"


def test_a_frame_may_have_any_columns() -> None:
    frame = pl.DataFrame(rows(60)).rename({"format": "cluster", "topic": "tokens"})
    made = Selector({**SMALL, "axes": {"tokens": {}, "cluster": {"column": "cluster"}}}).fit(frame, id="id")
    assert set(made.frame.columns) > {"cluster", "tokens", f"{USERS}tokens", "text"}
