"""Whole selections through the store: the same set however the files were cut, every row accounted for, bad input named."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.select.texts import corpus, edited, rows, true_jaccard, write

from coterie.corpora.documents import read_corpus
from coterie.errors import RequestError
from coterie.select import contamination
from coterie.select import profile_shards as shards
from coterie.select.chosen_corpus import selected_documents
from coterie.select.profiled_corpus import profile_corpus
from coterie.select.select_settings import Against
from coterie.select.selection import selection, why
from coterie.store import DryStore, Store

PLAN: dict[str, Any] = {
    "budget": {"docs": 60},
    "axes": {"cluster": {"k": 4, "mix": 0.5}, "format": {"target": {"story": 0.5, "lesson|note": 0.5}}},
    "rank": {"within": "format"},
    "relax": True,
}


def planted(count: int = 240, seed: int = 0) -> list[dict[str, Any]]:
    """Rows with near-duplicates among them."""
    made = rows(count, seed)
    for i in range(0, 40, 2):
        made[i + 1] = {**made[i + 1], "text": edited(made[i]["text"], 0.02, i)}
    return made


def chosen(store: Store, path: Any, select: dict[str, Any] = PLAN, **more: Any) -> list[str]:
    it = profile_corpus(store, corpus(path, select, **more), label="c")
    return pl.read_parquet(selection(it).file("selected.parquet"))["id"].to_list()


def test_a_shuffled_or_resharded_input_gives_the_same_ids_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planted()
    first = chosen(Store(tmp_path / "a"), str(write(tmp_path / "one.jsonl", made)))
    assert len(first) == 60
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)  # a part for each file
    draw = random.Random(1)
    for turn, pieces in enumerate((2, 5)):
        shuffled = draw.sample(made, len(made))
        paths = [str(write(tmp_path / f"{turn}-{i}.jsonl", shuffled[i::pieces])) for i in range(pieces)]
        store = Store(tmp_path / f"b{turn}")
        it = profile_corpus(store, corpus(paths, PLAN), label="c")
        assert len(it.parts) == pieces
        assert chosen(store, paths) == first
        again = profile_corpus(Store(tmp_path / "a"), corpus(str(tmp_path / "one.jsonl"), PLAN), label="c")
        for name in ("pool.parquet", "ids.parquet"):
            assert it.artifact.files[name] == again.artifact.files[name], "merged parts are what one process makes"


def test_parts_made_by_other_processes_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    made = planted(120)
    paths = [str(write(tmp_path / f"{i}.jsonl", made[i::3])) for i in range(3)]
    asked = corpus(paths, {**PLAN, "budget": {"docs": 30}})
    store = Store(tmp_path / "store")
    for number in range(3):
        assert len(shards.profile_parts(Store(tmp_path / "store"), asked, label="c", only=(number, 3))) == 1
    parts = shards.profile_parts(store, asked, label="c")
    assert len(parts) == 3
    assert all(p.reused and d.reused for d, p in parts)


@settings(max_examples=6)
@given(st.integers(0, 10_000), st.sampled_from(["docs", "tokens"]))
def test_quotas_are_met_and_totals_balance(tmp_path_factory: pytest.TempPathFactory, seed: int, unit: str) -> None:
    folder = tmp_path_factory.mktemp("q")
    budget = {"docs": 50} if unit == "docs" else {"tokens": 4000}
    asked = {
        "budget": budget,
        "relax": True,
        "axes": {"topic": {"mix": 0.3}, "format": {"target": {"story": 0.6, "lesson": 0.3, "note": 0.1}}},
    }
    it = profile_corpus(Store(folder / "s"), corpus(str(write(folder / "c.jsonl", planted(seed=seed))), asked), label="c")
    made, funnel = it.chosen, it.artifact.facts["funnel"]
    assert funnel["read"] == 240
    assert sum(d["documents"] for d in funnel["dropped"].values()) + funnel["kept"]["documents"] == 240
    size = it.candidates.size_N(unit == "tokens")[made.at]
    assert made.plan is not None
    wanted = budget.get("docs") or budget["tokens"]
    off = size.sum() - wanted
    assert abs(off) <= (0 if unit == "docs" else it.candidates.tokens_N.max() / 2)
    for margin, given_G in zip(made.plan.margins, made.plan.attained, strict=True):
        labels = it.candidates.labels[margin.name]
        group = [margin.groups.index(labels.values[c]) for c in labels.code_N[made.at]]
        got = np.bincount(group, size, minlength=len(margin.groups))
        room = 1 if unit == "docs" else it.candidates.tokens_N.max() * 1.5
        assert np.abs(got - given_G).max() <= room + 1e-6
    assert len(set(made.at.tolist())) == len(made.at)


def test_what_is_selected_has_no_near_duplicates_by_brute_force(tmp_path: Path) -> None:
    made = planted(160)
    text = {r["id"]: r["text"] for r in made}
    ids = chosen(Store(tmp_path / "s"), str(write(tmp_path / "c.jsonl", made)), {"budget": {"docs": 120}})
    assert not [(a, b) for i, a in enumerate(ids) for b in ids[:i] if true_jaccard(text[a], text[b]) >= 0.7]
    kept = {**PLAN, "keep": {"near_dup": None}, "budget": {"docs": 160}, "axes": {}, "rank": {}}
    everything = chosen(Store(tmp_path / "s"), str(tmp_path / "c.jsonl"), kept)
    assert len(everything) == len({r["text"] for r in made}) > 150, "without the filter, only exact copies go"


def test_a_corpus_with_a_selection_is_one_to_train_on(tmp_path: Path) -> None:
    made = [{**r, "group": r["id"]} for r in planted(300)]
    path = str(write(tmp_path / "c.jsonl", made))
    asked = corpus(
        path, {**PLAN, "budget": {"docs": 50}}, columns=["topic"], split={"valid": 0.1, "test": 0.1, "group": "group"}
    )
    store = Store(tmp_path / "s")
    documents = selected_documents(store, asked, label="c")
    table = pl.read_parquet(documents.file("documents.parquet"))
    whole = pl.read_parquet(
        read_corpus(store, asked.model_copy(update={"select": None}), label="c").file("documents.parquet")
    )
    facts = documents.facts
    assert facts["read"] == 300 == facts["kept"] + facts["filtered"] + facts["quarantined"]
    train = table.filter(pl.col("split") == "train")
    assert len(train) == 50 == facts["splits"]["train"]["documents"]
    assert train["id"].to_list() == chosen(
        store, path, {**PLAN, "budget": {"docs": 50}}, columns=["topic"], split=asked.split.model_dump()
    )
    for split in ("valid", "test"):
        assert set(table.filter(pl.col("split") == split)["id"]) == set(whole.filter(pl.col("split") == split)["id"])
    assert {"topic", "cluster", "cluster_group"} <= set(table.columns)
    assert table.schema["time"] == pl.Date
    plan = DryStore(tmp_path / "none")
    assert selected_documents(plan, asked, label="c").planned
    assert {step.kind for step in plan.steps.values()} == {"corpora", "profiles", "topics", "selections"}


def test_training_text_near_held_out_text_is_dropped(tmp_path: Path) -> None:
    made = rows(200, 3)
    for i in range(40):
        made.append({**made[i], "id": f"copy{i}", "text": edited(made[i]["text"], 0.01, i)})
    path = str(write(tmp_path / "c.jsonl", made))
    it = profile_corpus(
        Store(tmp_path / "s"), corpus(path, {"budget": {"docs": 9}}, split={"valid": 0.2, "test": 0.2}), label="c"
    )
    dropped = it.artifact.facts["funnel"]["dropped"]
    assert dropped["near-duplicate of held-out text"]["documents"] > 3
    text = dict(zip([r["id"] for r in made], [r["text"] for r in made], strict=True))
    ids = pl.read_parquet(it.artifact.file("ids.parquet"))["id"].to_list()
    held = [text[i] for i, d in zip(ids, it.pool.table["dropped"], strict=True) if d == 1]
    kept = [text[i] for i, d in zip(ids, it.pool.table["dropped"], strict=True) if d == 0]
    assert not any(true_jaccard(a, b) >= 0.7 for a in held for b in kept)


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    path = str(write(tmp_path / "c.jsonl", planted()))
    store = Store(tmp_path / "s")
    one, two = chosen(store, path), chosen(store, path, {**PLAN, "seed": 1, "axes": {"format": PLAN["axes"]["format"]}})
    assert set(one) != set(two)
    assert chosen(Store(tmp_path / "t"), path) == one


def test_another_budget_reads_nothing_again(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", planted())
    store = Store(tmp_path / "s")
    chosen(store, str(path))
    plan = DryStore(tmp_path / "s")
    selection(profile_corpus(plan, corpus(str(path), {**PLAN, "budget": {"docs": 10}}), label="c"))
    assert [s.kind for s in plan.steps.values() if not s.cached] == ["selections"]


def test_bad_rows_are_borne_by_the_corpus_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    good = planted(120)
    (tmp_path / "a.jsonl").write_bytes(
        b"".join(json.dumps(r).encode() + b"\n" for r in good[:20])
        + b'{"id": "bad", "text": "caf\xe9"}\n{"id": "empty", "text": "  "}\n'
    )
    write(tmp_path / "b.jsonl", good[20:])
    paths = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    asked = {"budget": {"docs": 20}}
    it = profile_corpus(Store(tmp_path / "s"), corpus(paths, asked, bad_rows={"share": 0.02, "most": 5}), label="c")
    funnel = it.artifact.facts["funnel"]
    assert (funnel["read"], funnel["quarantined"], funnel["filtered"]) == (122, 1, 1)
    assert funnel["filtered_why"] == {"empty": 1}
    with pytest.raises(RequestError, match="1 of 122 rows cannot be read") as caught:
        profile_corpus(Store(tmp_path / "s"), corpus(paths, asked), label="c")
    assert "0xE9" in str(caught.value)


def test_duplicate_ids_and_exact_duplicates_are_counted(tmp_path: Path) -> None:
    made = rows(40)
    made.append({**made[0], "text": "Another text altogether, of some words. It is the second with this id."})
    made.append({**made[1], "id": "copy"})
    it = profile_corpus(
        Store(tmp_path / "s"), corpus(str(write(tmp_path / "c.jsonl", made)), {"budget": {"docs": 5}}), label="c"
    )
    dropped = it.artifact.facts["funnel"]["dropped"]
    assert dropped["duplicate id"]["documents"] == 1
    assert dropped["exact duplicate"]["documents"] == 1
    said = "\n".join(why(it, it.chosen, "d0"))
    assert "dropped: duplicate id" in said
    assert "place" in said


@pytest.mark.parametrize(
    ("select", "what", "says"),
    [
        ({"axes": {"format": {"column": "formt"}}}, '0 of 60 rows have "formt"', "select.axes.format.column"),
        ({"axes": {"format": {"target": {"poem": 1.0}}}}, "no document has the format 'poem'", "lesson, note, story"),
        ({"keep": {"tokens": [9000, 9001]}}, "no document is left", "too short"),
        ({"budget": {"docs": 61}}, "the plan cannot be met", "1 documents more than the 60"),
        ({"budget": {"docs": 61}, "strategy": "random"}, "the plan cannot be met", "1 documents more than the 60"),
        ({"budget": {"docs": 61}, "strategy": "published"}, "the plan cannot be met", "1 documents more than the 60"),
        ({"axes": {"cluster": {"k": 61}}}, "more clusters than documents", "at most 60"),
        ({"axes": {"cluster": {"k": 3, "groups": 4}}}, "more groups than clusters", "at most 3"),
        ({"rank": {"by": "topic"}}, "'topic' does not hold a number", "rank.by"),
        ({"tokens": {"column": "format"}}, "'format' does not hold a number", "tokens.column"),
        ({"axes": {"cluster": {"model": "nowhere"}}}, "no clusters fitted earlier", "axes.cluster.model"),
        ({"axes": {"cluster": {"k": 3, "embed": "nowhere"}}}, "no sentence-embedding model", "axes.cluster.embed"),
        ({"tokens": {"tokenizer": "nowhere"}}, "no tokenizer.json", "tokens.tokenizer"),
        ({"keep": {"contamination": {"path": "nowhere.jsonl"}}}, "no such file", "contamination"),
        ({"axes": {"format": {"target": {"story": 0.5, "note": 0.5}}}, "budget": {"docs": 40}}, "cannot be met", "note"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_cannot_be_done_is_said(tmp_path: Path, select: dict[str, Any], what: str, says: str) -> None:
    path = str(write(tmp_path / "c.jsonl", rows(60)))
    with pytest.raises(RequestError) as caught:
        chosen(Store(tmp_path / "s"), path, {"budget": {"docs": 10}, **select})
    assert what in str(caught.value)
    assert says in str(caught.value)


def test_a_document_of_many_megabytes_and_an_empty_one(tmp_path: Path) -> None:
    made = rows(30)
    made.append({"id": "huge", "text": "A sentence that says the same again and again. " * 120_000, "format": "note"})
    made.append({"id": "none", "text": "", "format": "note"})
    asked = {"budget": {"docs": 10}, "keep": {"tokens": [0, 5000]}}
    it = profile_corpus(Store(tmp_path / "s"), corpus(str(write(tmp_path / "c.jsonl", made)), asked), label="c")
    assert it.artifact.facts["funnel"]["dropped"]["too long"]["documents"] == 1
    assert it.artifact.facts["funnel"]["filtered_why"] == {"empty": 1}
    row = it.pool.table.filter(pl.col("dropped") != 0).row(0, named=True)
    assert row["chars"] == len(made[30]["text"])
    assert row["words"] == pytest.approx(9 * 120_000, rel=0.01)


def test_tokens_by_column_tokenizer_and_fit(tmp_path: Path, tiny_tokenizer: Path) -> None:
    made = [{**r, "n": 10 + i} for i, r in enumerate(rows(80))]
    path = str(write(tmp_path / "c.jsonl", made))
    store = Store(tmp_path / "s")

    def counted(tokens: dict[str, Any]) -> Any:
        return profile_corpus(store, corpus(path, {"budget": {"docs": 5}, "tokens": tokens}), label="c")

    by_id = {r["id"]: r for r in made}
    it = counted({"column": "n"})
    assert it.pool.table["tokens"].to_list() == [by_id[i]["n"] for i in it.pool.ids(np.arange(80))]
    from tokenizers import Tokenizer

    stock = Tokenizer.from_file(str(tiny_tokenizer / "tokenizer.json"))
    exact = counted({"tokenizer": str(tiny_tokenizer), "sample": None})
    assert exact.pool.table["tokens"].to_list() == [
        len(stock.encode(by_id[i]["text"]).ids) for i in exact.pool.ids(np.arange(80))
    ]
    fitted = counted({"tokenizer": str(tiny_tokenizer), "sample": 60})
    error = fitted.artifact.facts["token_error"]
    assert 0 < error < 0.1
    off = fitted.pool.table["tokens"].to_numpy() / exact.pool.table["tokens"].to_numpy() - 1
    assert np.abs(off).mean() < 2 * error + 0.01


def test_columns_that_are_called_like_a_measure(tmp_path: Path) -> None:
    made = [{**r, "quality": 1 - i / 100, "tokens": 10 + i, "words": "w"} for i, r in enumerate(rows(40))]
    asked = {"budget": {"docs": 5}, "rank": {"by": "quality", "temperature": 0, "length": 0}, "tokens": {"column": "tokens"}}
    given = corpus(str(write(tmp_path / "c.jsonl", made)), asked, columns=["words", "topic"])
    it = profile_corpus(Store(tmp_path / "s"), given, label="c")
    by_id = {r["id"]: r for r in made}
    ids = it.pool.ids(np.arange(len(it.pool.table)))
    assert it.pool.table["quality"].to_list() == pytest.approx([by_id[i]["quality"] for i in ids])
    assert it.pool.table["tokens"].to_list() == [by_id[i]["tokens"] for i in ids]
    assert set(it.pool.ids(it.candidates.row_N[it.chosen.at])) == {f"d{i}" for i in range(5)}
    assert it.labels == ["topic"]


def test_contaminated_documents_go(tmp_path: Path) -> None:
    made = rows(40)
    write(tmp_path / "eval.jsonl", [{"text": made[3]["text"]}, {"text": "Too short to count."}])
    asked = {"budget": {"docs": 5}, "keep": {"contamination": {"path": str(tmp_path / "eval.jsonl"), "words": 8}}}
    it = profile_corpus(Store(tmp_path / "s"), corpus(str(write(tmp_path / "c.jsonl", made)), asked), label="c")
    assert it.artifact.facts["funnel"]["dropped"] == {
        "contaminated": {"documents": 1, "tokens": it.pool.table.filter(pl.col("dropped") != 0)["tokens"].sum()}
    }
    assert "dropped: contaminated" in why(it, it.chosen, "d3")


@pytest.mark.parametrize("change", [{"words": 9}, {"text": "body"}, {"path": "other.jsonl"}])
def test_another_question_about_contamination_gets_another_answer(change: dict[str, Any], tmp_path: Path) -> None:
    for name in ("eval", "other"):
        write(tmp_path / f"{name}.jsonl", [{"text": name, "body": name}])
    asked = {"path": str(tmp_path / "eval.jsonl"), "words": 8, "text": "text"}
    changed = asked | change | ({"path": str(tmp_path / change["path"])} if "path" in change else {})
    known = [contamination.identity(Store(tmp_path / "s"), Against(**these)) for these in (asked, changed)]
    assert known[0] != known[1]


def test_clusters_are_topics_and_saved_ones_are_used_again(tmp_path: Path) -> None:
    from sklearn.metrics import normalized_mutual_info_score

    made = rows(300, 5)
    store = Store(tmp_path / "s")
    four = {"budget": {"docs": 5}, "axes": {"cluster": {"k": 4, "groups": 2}}}
    asked = corpus(str(write(tmp_path / "c.jsonl", made)), four, columns=["topic"])
    it = profile_corpus(store, asked, label="c")
    table = it.pool.table
    assert normalized_mutual_info_score(table["topic"], table["cluster"].cast(pl.String)) > 0.8
    assert it.topics is not None
    facts = it.topics.facts
    assert facts["silhouette"] > facts["silhouette_shuffled"] + 0.05
    assert facts["refit_ari"] > 0.5
    assert sum(facts["sizes"]) == 300
    assert sorted(facts["sizes"], reverse=True) == facts["sizes"]
    words = [set(t) for t in facts["terms"]]
    assert any({"planet", "galaxy", "orbit", "comet"} & w for w in words)
    groups = dict(zip(facts["names"], facts["groups"], strict=True))
    assert set(groups.values()) == {"g0", "g1"}
    assert table["cluster_group"].cast(pl.String).to_list() == [groups[c] for c in table["cluster"].cast(pl.String)]

    saved = {"budget": {"docs": 5}, "axes": {"cluster": {"model": str(it.topics.path)}}}
    later = corpus(str(write(tmp_path / "d.jsonl", rows(80, 6))), saved, columns=["topic"])
    new = profile_corpus(store, later, label="d").pool.table
    both = pl.concat([t.select(pl.col("topic").cast(pl.String), pl.col("cluster").cast(pl.String)) for t in (table, new)])
    assert normalized_mutual_info_score(both["topic"], both["cluster"]) > 0.8, "the numbers mean the same in new data"


def test_k_is_chosen(tmp_path: Path) -> None:
    asked = corpus(
        str(write(tmp_path / "c.jsonl", rows(200, 5))), {"budget": {"docs": 5}, "axes": {"cluster": {"k": "auto"}}}
    )
    it = profile_corpus(Store(tmp_path / "s"), asked, label="c")
    assert it.topics is not None
    assert it.topics.facts["k"] == 4
    assert it.topics.facts["tried"]["4"] == max(it.topics.facts["tried"].values())


def test_redundancy_is_put_back(tmp_path: Path) -> None:
    made = rows(150, 2)
    path = str(write(tmp_path / "c.jsonl", made))
    asked = {"budget": {"docs": 30}, "axes": {"cluster": {"k": 3}}, "relax": True}
    store = Store(tmp_path / "s")
    plain = profile_corpus(store, corpus(path, asked), label="c")
    spread = profile_corpus(store, corpus(path, {**asked, "redundancy": 0.8}), label="c")
    assert spread.chosen.put_back > 0

    def likest(it: Any) -> float:
        vectors = it.vectors(it.chosen.at)
        cell = it.chosen.cell_N[it.chosen.at]
        same = (cell[:, None] == cell[None]) & ~np.eye(len(cell), dtype=bool)
        return float((vectors @ vectors.T)[same].mean())

    assert likest(spread) < likest(plain)


def test_documents_without_ids_are_known_by_their_content(tmp_path: Path) -> None:
    made = planted(100)
    asked = {"budget": {"docs": 20}}
    one = chosen(Store(tmp_path / "a"), str(write(tmp_path / "a.jsonl", made)), asked, id=None)
    two = chosen(Store(tmp_path / "b"), str(write(tmp_path / "b.jsonl", made[::-1])), asked, id=None)
    assert one == two


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_other_formats_give_the_same_ids(tmp_path: Path, form: str) -> None:
    made = planted(100)
    asked = {"budget": {"docs": 20}, "axes": {"format": {"mix": 0.2}}, "relax": True}
    first = chosen(Store(tmp_path / "a"), str(write(tmp_path / "a.jsonl", made)), asked)
    frame = pl.DataFrame(made)
    path = tmp_path / f"c.{form}"
    frame.write_csv(path) if form == "csv" else frame.write_parquet(path)
    assert chosen(Store(tmp_path / "b"), str(path), asked) == first
