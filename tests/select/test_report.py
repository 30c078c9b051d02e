"""Strategies, figures and the report: known answers, every row of the funnel, chance as the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from tests.select.texts import corpus, rows, write

from coterie.errors import RequestError
from coterie.select import selection_figures as figures
from coterie.select.candidates import Candidates, Labels
from coterie.select.choose import choose, side_by_side
from coterie.select.profile import key_of
from coterie.select.profiled_corpus import Profiled, profile_corpus
from coterie.select.select_settings import Select
from coterie.select.selection import write_selected
from coterie.select.selection_page import page
from coterie.select.selection_report import report
from coterie.select.selector import Selector
from coterie.select.strategies import SHARES, STRATEGIES
from coterie.store import Store

GROUPS = (
    "funnel",
    "axes",
    "table",
    "comparison",
    "cells",
    "duplicates",
    "clusters",
    "tokens",
    "batches",
    "provenance",
    "training",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Profiled:
    folder = tmp_path_factory.mktemp("report")
    asked = {
        "budget": {"tokens": 5000},
        "relax": True,
        "rank": {"within": "format"},
        "axes": {"cluster": {"k": 4, "mix": 1.0}, "format": {"mix": 0.5}},
    }
    given = corpus(str(write(folder / "c.jsonl", rows(300, 1))), asked, columns=["topic"])
    return profile_corpus(Store(folder / "s"), given, label="c")


def test_the_eleven_groups(made: Profiled) -> None:
    it = report(made, made.chosen)
    assert set(GROUPS) <= set(it)
    json.dumps(it, default=float)
    funnel = it["funnel"]
    assert funnel["read"] == 300
    assert funnel["selected"]["documents"] == len(made.chosen.at)
    assert it["unused_labels"] == ["topic"]
    assert set(it["comparison"]["strategies"]) == {"this selection", *STRATEGIES} - {"plan"}
    for name, f in it["comparison"]["strategies"].items():
        assert abs(f["tokens"] - 5000) < 100, f"{name}: equal tokens"
        assert {"topic", "cluster", "format"} == set(f["labels"]), "a label that the plan did not use is judged too"
    assert it["comparison"]["random"]["draws"] == 20
    band = it["comparison"]["random"]["labels"]["topic"]["gini"]
    assert band["low"] <= band["mean"] <= band["high"]
    assert abs(it["tokens"]["error_percent"]) < 1
    assert it["training"] is None, "nothing is claimed about training without a paired run"
    assert it["provenance"]["seed"] == 0
    assert it["provenance"]["peak_megabytes"] > 10
    assert sum(c["selected"] for c in it["cells"]) == made.chosen.tokens
    assert all(c["taken"] <= 1 + 1e-9 for c in it["cells"])
    assert it["clusters"]["k"] == 4
    assert len(it["duplicates"]["s_curve"]) == 15
    assert it["batches"]["cluster"]["whole"] > 0.9


def test_the_page_holds_every_group_and_asks_nobody(made: Profiled, tmp_path: Path) -> None:
    html = page(report(made, made.chosen))
    for number in range(1, 12):
        assert f"<h2>{number} " in html
    assert "://" not in html
    assert "<script" not in html
    bare = made.select.model_copy(update={"axes": {}})
    assert "No axis is planned" in page(report(made, choose(made.candidates, bare, seed=0, label="c")) | {"axes": {}})
    (tmp_path / "run.json").write_text('{"speed_up": 1.02}')
    assert "speed_up" in page(report(made, made.chosen, paired=tmp_path / "run.json"))
    with pytest.raises(RequestError, match="paired run"):
        report(made, made.chosen, paired=tmp_path / "none.json")


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_in_a_browser(made: Profiled, tmp_path: Path, shown: Any, width: int) -> None:
    it = report(made, made.chosen)
    (tmp_path / "report.html").write_text(page(it), encoding="utf-8")
    opened = shown(tmp_path / "report.html", {"width": width, "height": 900})
    assert opened.locator("h2").count() == 11
    assert opened.evaluate("document.documentElement.scrollWidth") <= width, "wide tables scroll by themselves"
    filled = opened.locator("table.heat td[style]")
    assert filled.count() == sum(c["selected"] > 0 for c in it["cells"])
    assert filled.first.evaluate("e => getComputedStyle(e).backgroundColor") != "rgba(0, 0, 0, 0)"
    for path in opened.locator("svg path").all():
        assert path.evaluate("e => e.getBBox().width") > 100
    cells = opened.locator("details table").first
    assert not cells.is_visible()
    opened.locator("summary").first.click()
    assert cells.locator("tr").count() == len(it["cells"]) + 1
    assert cells.is_visible()


def test_selected_rows_carry_cell_scores_and_reason(made: Profiled, tmp_path: Path) -> None:
    write_selected(tmp_path / "s.jsonl", made, made.chosen)
    said = [json.loads(line) for line in (tmp_path / "s.jsonl").open()]
    by_id = {r["id"]: r for r in rows(300, 1)}
    assert len(said) == len(made.chosen.at)
    for row in said:
        assert row["text"] == by_id[row["id"]]["text"]
        assert row["topic"] == by_id[row["id"]]["topic"]
        assert row["cell"] == f"{row['cluster']} / {row['format']}"
        assert {"quality", "quality_rank", "length_score", "merit", "score"} == set(row["scores"])
        assert "taken from" in row["reason"]


def test_only_the_batches_of_picked_rows_are_read(made: Profiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is scanned to give the rows out: as many compressed batches are opened as hold a picked row."""
    shard = made.pool.shards[0]
    opened: list[int] = []
    reader = shard._texts
    spy = type(
        "Spy",
        (),
        {"get_batch": lambda _, i: opened.append(i) or reader.get_batch(i), "num_record_batches": reader.num_record_batches},
    )()
    monkeypatch.setitem(shard.__dict__, "_texts", spy)
    few = choose(
        made.candidates,
        made.select.model_copy(
            update={"axes": {}, "budget": made.select.budget.model_copy(update={"tokens": None, "docs": 2})}
        ),
        seed=0,
        label="c",
    )
    write_selected(tmp_path / "few.jsonl", made, few)
    assert 1 <= len(opened) <= 2 < reader.num_record_batches


def test_balance_figures() -> None:
    even = figures.balance(np.array([5.0, 5, 5, 0]), np.array([1, 1, 1, 0]))
    assert even["entropy"] == pytest.approx(1)
    assert even["effective"] == pytest.approx(3)
    assert even["gini"] == pytest.approx(0)
    assert even["coverage"] == 1
    one = figures.balance(np.array([7.0, 0, 0, 0]), np.ones(4))
    assert (one["entropy"], one["coverage"], one["largest"]) == (0, 0.25, 1)
    assert one["gini"] == pytest.approx(0.75)
    values = np.array([1.0, 4, 2, 9])
    slow = sum(abs(a - b) for a in values for b in values) / (2 * len(values) * values.sum())
    assert figures.gini(values) == pytest.approx(slow)
    assert figures.distance(np.array([1.0, 1]), np.array([1.0, 3])) == pytest.approx(
        {"tv": 0.25, "kl": 0.5 * np.log(2) + 0.5 * np.log(2 / 3)}
    )
    assert figures.ks(np.arange(100.0), np.arange(50.0)) == pytest.approx(0.5)


def candidates(formats: list[str], clusters: list[str], tokens: np.ndarray, quality: np.ndarray | None = None) -> Candidates:
    N = len(formats)
    labels = {"format": Labels.of(pl.Series(formats)), "cluster": Labels.of(pl.Series(clusters))}
    quality = np.linspace(0, 1, N) if quality is None else quality
    return Candidates(np.arange(N), key_of([str(i) for i in range(N)]), tokens, quality, labels)


COSMO = {
    "textbook_academic_tone": 0.21,
    "blogpost": 0.3,
    "wikihow": 0.09,
    "story_children": 0.1,
    "story_reddit": 0.06,
    "textbook_narrative": 0.1,
    "educational_piece": 0.1,
    "story_life": 0.04,
}


def cosmopedia(N: int = 20_000) -> Candidates:
    draw = np.random.default_rng(0)
    formats = draw.choice(list(COSMO), N, p=list(COSMO.values())).tolist()
    clusters = [f"c{c:02}" for c in draw.zipf(1.5, N) % 19]
    return candidates(formats, clusters, np.maximum(draw.normal(820, 250, N), 60).astype(int), draw.random(N))


def test_the_published_formula_returns_one_format() -> None:
    """Reference, section 1a item 2: 1,000 of 1,000 from one format, lengths 789 to 811; ours holds the five shares."""
    pool = cosmopedia()
    asked = Select.model_validate({"budget": {"docs": 300}, "axes": {"cluster": {"column": "x", "mix": 0}, "format": {}}})
    theirs = choose(pool, asked.model_copy(update={"strategy": "published"}), seed=0, label="c")
    assert len(theirs.at) == 300
    formats = pool.labels["format"].code_N[theirs.at]
    assert len(set(formats.tolist())) == 1
    assert np.abs(pool.tokens_N[theirs.at] - 800).max() < 60
    slow = (
        pl.DataFrame(
            {
                "f": np.array(pool.labels["format"].values)[pool.labels["format"].code_N],
                "c": np.array(pool.labels["cluster"].values)[pool.labels["cluster"].code_N],
                "n": pool.tokens_N,
            }
        )
        .with_columns(
            q=pl.col("f").replace_strict(
                {
                    "textbook_academic_tone": 1.0,
                    "educational_piece": 0.9,
                    "textbook_narrative": 0.85,
                    "blogpost": 0.7,
                    "wikihow": 0.75,
                    "story_children": 0.6,
                    "story_reddit": 0.5,
                },
                default=0.6,
            )
        )
        .with_columns(
            s=0.4 * (1 / pl.len().over("f") + 1 / pl.len().over("c"))
            + 0.6 * (1 - (pl.col("n") - 800).abs() / 800) * pl.col("q")
        )
    )
    assert theirs.parts["score"] == pytest.approx(slow["s"].to_numpy())

    ours = choose(pool, asked.model_copy(update={"strategy": "balanced"}), seed=0, label="c")
    got = np.bincount(pool.labels["format"].code_N[ours.at], minlength=len(COSMO))
    share = dict(zip(pool.labels["format"].values, got / 300, strict=True))
    assert share["textbook_academic_tone"] == pytest.approx(SHARES["textbook_academic_tone"], abs=0.004)
    assert share["blogpost"] + share["wikihow"] == pytest.approx(0.20, abs=0.004)
    assert sum(share[s] for s in share if s.startswith("story")) == pytest.approx(0.10, abs=0.004)
    assert len(set(pool.labels["cluster"].code_N[ours.at].tolist())) == 19


def test_each_strategy_does_what_it_says() -> None:
    pool = cosmopedia(5000)
    asked = Select.model_validate(
        {
            "budget": {"docs": 400},
            "axes": {"cluster": {"column": "x", "mix": 0.4}, "format": {}},
            "rank": {"within": "format"},
        }
    )
    table = {name: figures.of_selection(it) for name, it in side_by_side(pool, asked, seed=0, label="c").items()}
    assert all(f["documents"] == 400 for f in table.values())
    assert table["quality"]["mean_quality"] > table["balanced"]["mean_quality"] > table["random"]["mean_quality"]
    gini = {name: f["labels"]["cluster"]["gini"] for name, f in table.items()}
    assert gini["diversity"] < 0.1 < gini["balanced"] < gini["proportional"]
    off = {name: f["labels"]["format"]["tv_to_pool"] for name, f in table.items()}
    assert off["proportional"] < 0.02 < off["diversity"]
    assert STRATEGIES["plan"].replaces == ()


def test_the_placebo_permutes_labels_only(made: Profiled) -> None:
    plain, placebo = (
        choose(made.candidates, made.select.model_copy(update={"placebo": p}), seed=0, label="c") for p in (False, True)
    )
    assert set(plain.at.tolist()) != set(placebo.at.tolist())
    assert placebo.capacity_C.sum() == plain.capacity_C.sum()
    own = figures.of_selection(plain)["labels"]["cluster"]["gini"]
    assert figures.of_selection(placebo)["labels"]["cluster"]["gini"] > own + 0.05


class Length:
    """A plug-in of each kind."""

    def score(self, batch: list[str]) -> list[float]:
        return [-float(len(t)) for t in batch]

    def label(self, batch: list[str]) -> list[str]:
        return ["long" if len(t) > 400 else "short" for t in batch]

    def embed(self, batch: list[str]) -> Any:
        return np.array([[t.count("sh"), t.count("ou"), t.count("an"), t.count("et")] for t in batch], dtype=float)


def test_plug_ins() -> None:
    frame = pl.DataFrame(rows(120, 4))
    it = Length()
    request = {
        "budget": {"docs": 20},
        "axes": {"label": {"target": {"long": 0.5, "short": 0.5}}},
        "rank": {"temperature": 0, "length": 0},
    }
    made = Selector(request, score=it, label=it).fit(frame, id="id")
    made.check()
    text = dict(zip(frame["id"], frame["text"], strict=True))
    want = []
    for kind in ("long", "short"):
        mine = [i for i in frame["id"] if it.label([text[i]]) == [kind]]
        want += sorted(mine, key=lambda i: len(text[i]))[:10]
    assert set(made.ids) == set(want)
    assert made.frame["text"].to_list() == [text[i] for i in made.ids]
    assert "chosen" in made.why(made.ids[0])
    assert made.report()["tokens"]["total"] > 0

    clustered = Selector({"budget": {"docs": 40}, "axes": {"cluster": {"k": 3, "mix": 1.0}}, "relax": True}, embed=it).fit(
        frame, id="id"
    )
    assert set(clustered.frame["cluster"]) == {"c00", "c01", "c02"}
    with pytest.raises(RequestError, match="more clusters than documents"):
        Selector({"budget": {"docs": 4}, "axes": {"cluster": {"k": 300}}}, embed=it).fit(frame, id="id")

    class Short:
        def score(self, batch: list[str]) -> list[float]:
            return [0.0]

    with pytest.raises(RequestError, match="another number of values"):
        Selector({"budget": {"docs": 4}}, score=Short()).fit(frame, id="id")


def test_a_local_sentence_model_makes_the_vectors(tmp_path: Path, tiny_tokenizer: Path) -> None:
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    torch.manual_seed(0)
    folder = tmp_path / "bert"
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=200, max_position_embeddings=300, **size)).save_pretrained(folder)
    stock = AutoTokenizer.from_pretrained(tiny_tokenizer)
    stock.pad_token = stock.pad_token or stock.eos_token
    stock.save_pretrained(folder)
    asked = corpus(
        str(write(tmp_path / "c.jsonl", rows(50))),
        {"budget": {"docs": 9}, "axes": {"cluster": {"k": 3, "embed": str(folder)}}},
    )
    it = profile_corpus(Store(tmp_path / "s"), asked, label="c")
    assert set(it.pool.table["cluster"].cast(pl.String)) == {"c00", "c01", "c02"}
    vectors = it.vectors(np.arange(5))
    assert vectors.shape == (5, 16)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
