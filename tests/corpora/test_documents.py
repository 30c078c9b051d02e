"""The corpus verb: identity, order, limits, filters, the balance."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpora.conftest import Make, table, write_jsonl

from coterie.corpora import reading
from coterie.corpora.documents import read_corpus
from coterie.errors import RequestError
from coterie.select.select_settings import Corpus
from coterie.store import DryStore, Store

ROWS = [{"text": f"text {i}", "n": i, "kind": "ab"[i % 2], "day": f"{2010 + i % 7}-0{1 + i % 9}"} for i in range(200)]


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(0, 15), st.one_of(st.none(), st.integers(0, 6))), min_size=1, max_size=50), st.booleans()
)
def test_no_content_is_in_two_splits(tmp_path_factory, rows: list[tuple[int, int | None]], grouped: bool) -> None:
    folder = tmp_path_factory.mktemp("x")
    path = write_jsonl(
        folder / "x.jsonl", [{"text": f"  text {c}" + " " * (i % 3), "g": g} for i, (c, g) in enumerate(rows)]
    )
    split = {"valid": 0.3, "test": 0.3, **({"group": "g"} if grouped else {})}
    made = read_corpus(Store(folder / "s"), Corpus.model_validate({"path": str(path), "split": split}), label="c")
    where = defaultdict(set)
    for row in table(made):
        where[row["content"]].add(row["split"])
    assert all(len(splits) == 1 for splits in where.values())
    assert made.facts["kept"] == len(rows)
    assert made.facts["duplicates"] == len(rows) - len(where)


def test_documents_come_in_the_order_of_their_content_whatever_the_files(make: Make, store: Store, tmp_path: Path) -> None:
    rows = [*ROWS, *({"text": f"  text   {i}", "n": 1000 + i} for i in range(50))]  # duplicates but for white space
    one = make(rows, id="n")
    a, b = write_jsonl(tmp_path / "a.jsonl", rows[120:]), write_jsonl(tmp_path / "b.jsonl", rows[:120])
    two = read_corpus(store, Corpus(path=(str(a), str(b)), id="n"), label="c")
    assert table(one) == table(two)
    assert one.facts == two.facts
    assert one.facts["duplicates"] == 50
    assert [row["order"] for row in table(one)] == sorted(int(row["content"][:16], 16) for row in table(one))


def test_a_corpus_larger_than_memory_comes_out_the_same(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = make(ROWS, id="n", columns=["kind"], time="day")
    monkeypatch.setattr(reading, "_PART", 1000)
    monkeypatch.setattr(
        reading.RowFile, "add", lambda self, values, size, add=reading.RowFile.add: add(self, values, 3 << 20)
    )
    two = make(ROWS, id="n", columns=["kind"], time="day", store=Store(tmp_path / "other"))
    assert table(one) == table(two)
    assert one.facts == two.facts
    assert sorted(two.files) == ["documents.parquet", "facts.json", "quarantine.jsonl"]


def test_names_and_places_are_no_part_of_it_and_bytes_are(make: Make, store: Store, tmp_path: Path) -> None:
    one = make(ROWS)
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "rows.jsonl").rename(tmp_path / "elsewhere" / "other.name.jsonl")
    again = read_corpus(store, Corpus(path=str(moved)), label="renamed")
    assert again.digest == one.digest
    moved.write_text(moved.read_text().replace("text 7", "text 8", 1))
    assert read_corpus(store, Corpus(path=str(moved)), label="renamed").digest != one.digest


@pytest.mark.parametrize(
    "change", [{"text": "{text}!"}, {"id": "n"}, {"split": {"test": 0.5}}, {"limit": 0.5}, {"columns": ["n"]}]
)
def test_what_decides_the_result_is_part_of_it(make: Make, change: dict[str, Any]) -> None:
    assert make(ROWS).digest != make(ROWS, **change).digest
    assert make(ROWS, limit={"tokens": 100}).digest == make(ROWS).digest
    assert make(ROWS, bad_rows={"share": 0.5}).digest == make(ROWS).digest


def test_text_files_are_known_by_their_names(store: Store, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("A")
    one = read_corpus(store, Corpus(path=str(tmp_path / "in")), label="c")
    (tmp_path / "in" / "a.txt").rename(tmp_path / "in" / "b.txt")
    assert read_corpus(store, Corpus(path=str(tmp_path / "in")), label="c").digest != one.digest


def test_prompt_and_response_filters_dates_and_columns(make: Make) -> None:
    rows = [
        {"q": "Q1", "a": "A1", "when": 2016, "ok": True, "tags": ["x"]},
        {"q": "Q2", "a": "A2", "when": 2017, "ok": False, "tags": []},
        {"q": "Q3", "a": "   ", "when": 2018, "ok": True, "tags": None},
        {"q": "", "a": "A4", "when": 2019, "ok": True},
    ]
    made = make(rows, prompt="{q}?", response="a", time="when", where={"ok": True}, columns=["tags", "when"])
    found = sorted(table(made), key=lambda row: row["id"])
    assert [(r["id"], r["prompt"], r["text"], r["time"], r["tags"], r["when"]) for r in found] == [
        ("1:1", "Q1?", "A1", date(2016, 12, 31), '["x"]', "2016"),
        ("1:4", "?", "A4", date(2019, 12, 31), None, "2019"),
    ]
    facts = made.facts
    assert {k: facts[k] for k in ("read", "kept", "filtered", "quarantined")} == {
        "read": 4,
        "kept": 2,
        "filtered": 2,
        "quarantined": 0,
    }
    assert facts["reasons"] == {"where ok": 1, "empty": 1}
    dated = [s for s in facts["splits"].values() if s["documents"]]
    assert min(s["first"] for s in dated) == "2016-12-31"
    assert max(s["last"] for s in dated) == "2019-12-31"


def test_limits_take_the_first_documents_in_order(make: Make) -> None:
    whole, part = make(ROWS), make(ROWS, limit={"rows": 50})
    assert part.facts["kept"] == 50
    assert part.facts["filtered"] == part.facts["reasons"]["limit"] == 150
    for split in ("train", "valid", "test"):
        all_of, some = ([r["text"] for r in table(made) if r["split"] == split] for made in (whole, part))
        assert some == all_of[: len(some)]
        assert some
    share = make(ROWS, limit=0.25)
    assert share.facts["kept"] == sum(-(-s["documents"] // 4) for s in whole.facts["splits"].values())


def test_what_was_borne_once_is_not_borne_for_ever(make: Make) -> None:
    rows = [*ROWS, {"text": None}]
    make(rows, bad_rows={"share": 0.01})
    with pytest.raises(RequestError, match="1 of 201 rows cannot be read"):
        make(rows)


def test_a_dry_run_reads_nothing_and_makes_nothing(make: Make, store: Store, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", ROWS)
    dry = DryStore(store.root)
    planned = read_corpus(dry, Corpus(path=str(path)), label="c")
    assert planned.planned
    assert planned.content("documents.parquet")
    read_corpus(store, Corpus(path=str(path)), label="c")
    assert not read_corpus(DryStore(store.root), Corpus(path=str(path)), label="c").planned


def test_a_dry_run_of_a_hub_dataset_needs_no_network(store: Store) -> None:
    planned = read_corpus(DryStore(store.root), Corpus(hub="nobody/nothing"), label="c")
    assert planned.planned


def test_equal_requests_give_equal_bytes(make: Make, tmp_path: Path) -> None:
    one = make(ROWS, columns=["kind"], time="day")
    two = make(ROWS, columns=["kind"], time="day", store=Store(tmp_path / "other"))
    assert one.files == two.files
    assert json.loads(one.file("facts.json").read_text()) == one.facts


def test_reading_needs_no_torch() -> None:
    heavy = ("torch", "transformers", "datasets", "polars")
    code = f"import sys, coterie.corpora; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_evidence_with_odd_line_breaks_is_read_back(make: Make) -> None:
    rows = [*ROWS, *({"text": ["\u2028\x85"]} for _ in range(3))]
    make(rows, bad_rows={"share": 0.1})
    with pytest.raises(RequestError, match="3 of 203 rows"):
        make(rows)


def test_dates_by_a_pattern_over_a_column(make: Make) -> None:
    rows = [{"text": f"text {i}", "dump": f"CC-MAIN-{2013 + i}-{10 + i}"} for i in range(5)]
    times = {row["id"]: row["time"] for row in table(make(rows, time="dump", time_pattern=r"CC-MAIN-(\d{4})"))}
    assert times == {f"1:{i + 1}": date(2013 + i, 12, 31) for i in range(5)}
    with pytest.raises(RequestError) as caught:
        make([*rows, {"text": "x", "dump": "elsewhere"}], time="dump", time_pattern=r"CC-MAIN-(\d{4})")
    assert "expected to match CC-MAIN-" in str(caught.value)
    assert ":6" in str(caught.value)


def test_documents_without_a_date_are_an_error_or_a_slice_by_name(make: Make, store: Store) -> None:
    rows = [{"text": f"text {i}", "day": "2016-05-01" if i % 4 else None} for i in range(40)] + [{"text": "none"}]
    with pytest.raises(RequestError) as caught:
        make(rows, time="day")
    assert 'field "day" is null' in str(caught.value)
    made = make(rows, time="day", undated="timeless")
    assert {(row["time"], row["undated"]) for row in table(made)} == {(date(2016, 5, 1), None), (None, "timeless")}
    assert made.facts["kept"] == 41
    with pytest.raises(RequestError, match="cannot be read"):  # what is there must still be a date
        make([*rows, {"text": "x", "day": "May"}], time="day", undated="timeless")


@pytest.mark.parametrize(
    ("value", "says"),
    [("May 2016", "expected a date"), ("2016-02-30", "expected a date"), ("2016-05-01T10:00:00+02:00", "a zone")],
)
def test_a_date_that_does_not_parse_is_named_with_file_and_line(make: Make, value: str, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        make([{"text": "a", "day": "2016-05-01"}, {"text": "b", "day": value}], time="day")
    assert says in str(caught.value)
    assert value in str(caught.value)
    assert ":2" in str(caught.value)


def test_a_time_column_of_mixed_types_is_refused(make: Make) -> None:
    with pytest.raises(RequestError, match="mixed types") as caught:
        make([{"text": "a", "day": 2016}, {"text": "b", "day": "2016-05-01"}], time="day")
    assert ":2" in str(caught.value)
