"""Runs over windows of time: snapshots and their curves, a window more or less, what dates may and may not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.counting import forward_passes
from tests.run.small import BASE, WORDS, write_corpus

import coterie
from coterie.errors import RequestError
from coterie.report.html_page import headlines
from coterie.report.tables import evaluation_tables

WINDOWS = {"start": "2013-01-01", "end": "2025-01-01", "every": "4y"}
RULE = {"at": "outputs", "slots": ["y*"], "eligible": "strict"}


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    path = write_corpus(folder / "dated.jsonl", WORDS["fruit"], 240, 0, dated=True)
    dated = {"path": str(path), "text": "text", "id": "id", "time": "date", "split": {"valid": 0.15, "test": 0.25}}
    return {
        "name": "windows",
        "sequence_length": 32,
        "base": BASE,
        "corpora": {"dated": dated},
        "train": {"tokens": 1000, "learning_rate": 0.01, "precision": "fp32"},
        "experts": [{"name": "y{start}", "corpus": "dated", "windows": WINDOWS, "from": "previous"}],
        "mixtures": [
            {"name": "average", **RULE},
            {"name": "posterior", **RULE, "router": "posterior"},
            {"name": "learned", **RULE, "router": {"kind": "linear", "epochs": 2}},
        ],
        "evaluation": [{"name": "losses", "corpora": ["dated"], "by": "year", "bootstrap": 20}],
        **changes,
    }


def test_snapshots_come_at_shares_of_the_budget_and_each_is_evaluated(tmp_path: Path) -> None:
    asked = recipe(tmp_path / "data", mixtures=[])
    asked["train"]["snapshots"] = 0.25
    done = coterie.run(asked, store=tmp_path / "store", out=tmp_path / "out")
    curves = {e["name"]: e["test_curve"] for e in done.summary["experts"].values()}
    assert curves.keys() == {"y2013", "y2017", "y2021"}
    for curve in curves.values():
        assert len(curve) == 4
        for k, (tokens, loss) in enumerate(curve, 1):
            assert k * 250 <= tokens <= k * 250 + 8 * 32  # the first step that reaches the mark
            assert 0 < loss < 10
        assert curve[-1][1] < curve[0][1]
    assert len({tuple(map(tuple, c)) for c in curves.values()}) == 3, "two windows share a snapshot"
    assert coterie.run(asked, store=tmp_path / "store", out=tmp_path / "out").summary["reuse"]["trained"] == 0


def test_snapshots_of_a_window_without_test_documents_end_with_a_summary(tmp_path: Path) -> None:
    """Before, everything was trained, and then the run ended without a summary."""
    asked = recipe(tmp_path / "data", mixtures=[], evaluation=[])
    lines = (tmp_path / "data/dated.jsonl").read_text().splitlines()
    (tmp_path / "data/dated.jsonl").write_text("\n".join([*lines[:200], *lines[-8:-6]]) + "\n")
    asked["corpora"]["dated"]["split"] = {"test": 0.05}
    asked["experts"][0]["windows"] = [
        {"start": "2013-01-01", "end": "2020-01-01"},
        {"start": "2024-01-01", "end": "2026-01-01"},
    ]
    asked["experts"][0] |= {"allow": ["gap"], "from": "base"}
    asked["train"]["snapshots"] = 0.5
    done = coterie.run(asked, store=tmp_path / "store", out=tmp_path / "out")
    assert sum("test_curve" in e for e in done.summary["experts"].values()) == 1
    assert any("are not evaluated" in note for note in done.summary["notes"])


def test_a_window_more_trains_one_expert_and_one_less_none(tmp_path: Path) -> None:
    place = {"store": tmp_path / "store", "out": tmp_path / "out"}
    short = recipe(tmp_path / "data")
    short["experts"][0]["windows"] = {**WINDOWS, "end": "2021-01-01"}
    # The tokenizer sees all documents, and the windows' experts rest on it: it is that of the corpus, not of the windows.
    before = coterie.run(short, **place).summary
    longer = coterie.run(recipe(tmp_path / "data"), **place).summary
    assert [e["trained"] for e in longer["experts"].values()] == [False, False, True]
    again = coterie.run(short, **place).summary
    assert again["reuse"]["trained"] == 0
    assert again["mixtures"] == before["mixtures"]


def test_all_years_of_all_mixtures_run_each_expert_once_a_document(tmp_path: Path) -> None:
    place = {"store": tmp_path / "store", "out": tmp_path / "out"}
    coterie.run(recipe(tmp_path / "data"), until="experts", **place)
    alone = recipe(tmp_path / "data", mixtures=[])
    with forward_passes() as passes:
        coterie.run(alone, **place)
    assert passes
    valid_only = recipe(tmp_path / "data", evaluation=[])
    coterie.run(valid_only, until="mixtures", **place)  # the routers are fitted on the valid split, scored once too
    with forward_passes() as passes:
        summary = coterie.run(recipe(tmp_path / "data"), **place).summary
    assert not passes
    assert {"average", "posterior", "learned"} <= summary["evaluation"]["losses"].keys()
    assert {"2017", "2020", "2024"} <= summary["evaluation"]["losses"]["average"].keys()


def test_dates_that_are_all_in_one_window_are_refused_with_the_dates_there_are(tmp_path: Path) -> None:
    asked = recipe(tmp_path / "data")
    asked["experts"][0]["windows"] = {"start": "2013-01-01", "end": "2061-01-01", "every": "12y"}
    with pytest.raises(RequestError, match=r"no documents for window \[2025-01-01, 2037-01-01\)") as caught:
        coterie.run(asked, store=tmp_path / "store", out=tmp_path / "out")
    assert "dated 2013-" in str(caught.value.found)
    assert not list((tmp_path / "store").glob("experts/*"))


def test_a_query_before_the_first_window_is_an_error_that_names_the_first_usable_date(tmp_path: Path) -> None:
    done = coterie.run(recipe(tmp_path / "data"), store=tmp_path / "store", out=tmp_path / "out")
    mixture = done.mixtures["learned"]
    with pytest.raises(RequestError, match="no expert may be used as of 2016-12-31") as caught:
        mixture.complete("apple", time="2016-12-31", max_new_tokens=2)
    assert "2017-01-01 or later" in str(caught.value.expected)
    assert isinstance(mixture.complete("apple", time="2017-01-01", max_new_tokens=2), str)
    with pytest.raises(RequestError, match="none is given"):
        mixture.complete("apple", max_new_tokens=2)
    with pytest.raises(RequestError, match="not a date"):
        mixture.complete("apple", time="May 2016", max_new_tokens=2)


def test_documents_without_a_date_train_an_expert_of_their_own(tmp_path: Path) -> None:
    asked = recipe(tmp_path / "data", mixtures=[])
    path = Path(asked["corpora"]["dated"]["path"])
    lines = path.read_text().splitlines()
    cut = [line.replace('"date": "', '"was": "') if i % 5 == 0 else line for i, line in enumerate(lines)]
    path.write_text("\n".join(line.replace("}", ', "date": null}') if '"was"' in line else line for line in cut) + "\n")
    with pytest.raises(RequestError, match="cannot be read"):
        coterie.run(asked, store=tmp_path / "store", out=tmp_path / "out")
    asked["corpora"]["dated"]["undated"] = "timeless"
    asked["mixtures"] = [{"name": "m", "at": "outputs", "slots": ["y2013", "rest"], "eligible": "all"}]
    asked["experts"].append({"name": "rest", "corpus": "dated", "where": {"undated": "timeless"}})
    done = coterie.run(asked, store=tmp_path / "store", out=tmp_path / "out")
    assert len(done.summary["experts"]) == 4


def test_the_quickstarts_recipe_for_time(tmp_path: Path) -> None:
    from coterie.quickstart.texts import recipe as texts

    texts(tmp_path / "texts")
    few = ["train.tokens=3000", "base.hidden_size=16", "base.layers=1", "mixtures.1.router=uniform"]
    few += [
        "mixtures.0.router={kind: posterior, fit: false}",
        "corpora.chronicle.limit=0.2",
        "evaluation.losses.bootstrap=20",
    ]
    done = coterie.run(tmp_path / "texts/time.yaml", store=tmp_path / "store", out=tmp_path / "out", settings=few)
    table = done.summary["evaluation"]["losses"]
    assert not table["strict"].get("2016", {}).get("tokens")
    assert table["strict"]["2017"]["nll"] == pytest.approx(table["y2013"]["2017"]["nll"], abs=1e-5)  # it alone may answer
    assert table["unmasked"]["2016"]["tokens"] > 0
    offices = done.summary["evaluation"]["offices"]["strict"]["all"]
    assert offices["n"] == 150
    assert offices["accuracy"] + offices["past"] + offices["future"] == pytest.approx(1)


def test_what_knows_the_future_is_marked_and_never_called_the_best(tmp_path: Path) -> None:
    asked = recipe(tmp_path / "data", single=True)
    asked["mixtures"] += [{"name": "free", "at": "outputs", "slots": ["y*"], "eligible": "all"}]
    asked["mixtures"] += [{"name": "early", "at": "outputs", "slots": ["y*"], "eligible": "inclusive"}]
    done = coterie.run(asked, store=tmp_path / "store", out=tmp_path / "out")
    days = pl.read_parquet(next(tmp_path.glob("store/corpora/*/documents.parquet"))).filter(pl.col("split") == "test")[
        "time"
    ]
    ahead = done.summary["foresight"]["losses"]
    assert ahead.keys() == {"y2013", "y2017", "y2021", "free", "early", "single"}
    assert ahead["y2021"] == ahead["free"] == ahead["early"] == 1  # the last document of all is from before their end
    assert 0 < ahead["y2013"] < ahead["y2017"] < 1
    assert ahead["single"] == pytest.approx((days < days.max()).mean(), abs=0.1)  # tokens, not documents
    (table,) = evaluation_tables(done.summary)
    for row in table.rows:
        assert (row.foresight > 0) == (row.name in ahead)
        assert ("knows the future" in row.detail) == (row.name in ahead)
        assert not (row.name in ahead and any(cell.best for cell in row.cells))
    assert any(cell.best for row in table.rows for cell in row.cells)
    (head,) = headlines(done.summary)
    assert not {name for _, _, name in head.figures} & {"free", "early"}


def test_years_that_a_limit_of_tokens_leaves_out_are_named(tmp_path: Path) -> None:
    asked = recipe(tmp_path / "data", mixtures=[])
    asked["evaluation"][0]["tokens"] = 60
    done = coterie.run(asked, store=tmp_path / "store", out=tmp_path / "out")
    (note,) = [n for n in done.summary["notes"] if "leaves out" in n]
    years = {str(year) for year in range(2013, 2025)}
    scored = done.summary["evaluation"]["losses"]["y2013"].keys() - {"all"}
    assert scored < years
    assert {year for year in years if year in note} == years - scored
