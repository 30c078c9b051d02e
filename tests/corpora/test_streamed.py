"""A dataset read as a stream into windows: one pass, and no row after the last window is full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.corpora.conftest import table

from coterie.corpora import hub as streamed
from coterie.corpora.documents import read_corpus
from coterie.errors import RequestError
from coterie.select.select_settings import Corpus
from coterie.store import DryStore, Store

WINDOWS = {"start": "2013-01-01", "end": "2017-01-01", "every": "2y"}
ROWS = [{"text": f"document number {i} " * 4, "dump": f"CC-MAIN-{2012 + i % 6}-05", "unread": i} for i in range(600)]


def corpus(folder: Path, **changes: Any) -> Corpus:
    """A dataset in a folder, which the library streams as it streams the hub's."""
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    asked = {
        "hub": str(folder),
        "revision": "main",
        "text": "text",
        "time": "dump",
        "time_pattern": r"CC-MAIN-(\d{4})",
        "stream": {"windows": WINDOWS, "tokens": 200},
        "split": {"valid": 0.2, "test": 0.2},
    }
    return Corpus.model_validate(asked | changes)


def test_each_window_gets_its_tokens_in_one_pass_and_no_row_more_is_read(tmp_path: Path, monkeypatch) -> None:
    read: list[dict] = []
    plain = streamed._stream

    def counting(*args: Any) -> Any:
        for row in plain(*args):
            read.append(row)
            yield row

    monkeypatch.setattr(streamed, "_stream", counting)
    store = Store(tmp_path / "store")
    made = read_corpus(store, corpus(tmp_path / "data"), label="web")
    rows = table(made)
    by_window = {2013: 0, 2015: 0}
    for row in rows:
        by_window[row["time"].year - (row["time"].year - 2013) % 2] += len(row["text"].encode())
    longest = max(len(r["text"].encode()) for r in ROWS)
    for size in by_window.values():
        assert 200 * streamed.BYTES_A_TOKEN <= size < 200 * streamed.BYTES_A_TOKEN + longest
    assert len(read) < 100, "the stream was read past what was needed"
    assert read == ROWS[: len(read)]
    count = len(read)
    again = read_corpus(Store(tmp_path / "store"), corpus(tmp_path / "data"), label="other")
    assert again.digest == made.digest
    assert len(read) == count
    more = read_corpus(store, corpus(tmp_path / "data", stream={"windows": WINDOWS, "tokens": 400}), label="web")
    assert more.facts["kept"] > made.facts["kept"]


def test_a_stream_that_ends_early_says_which_window_is_short(tmp_path: Path, monkeypatch) -> None:
    heard: list[str] = []
    monkeypatch.setattr(streamed, "say", heard.append)
    asked = corpus(tmp_path / "data", stream={"windows": {**WINDOWS, "end": "2019-01-01"}, "tokens": 3000})
    made = read_corpus(Store(tmp_path / "store"), asked, label="web")
    assert made.facts["kept"] == 500  # all but 2012's
    assert [line.strip().split(" has ")[0] for line in heard] == [
        "web: [2013-01-01, 2015-01-01)",
        "web: [2015-01-01, 2017-01-01)",
        "web: [2017-01-01, 2019-01-01)",
    ]


def test_a_dry_run_fetches_nothing(tmp_path: Path, monkeypatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("the stream was opened")

    monkeypatch.setattr(streamed, "_stream", never)
    assert read_corpus(DryStore(tmp_path / "store"), corpus(tmp_path / "data"), label="web").planned


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"stream": {"windows": {"start": "1990-01-01", "end": "1992-01-01", "every": "1y"}, "tokens": 5}},
            "lies in a window",
        ),
        ({"time": "when"}, "have"),
        ({"hub": "nobody/nothing-of-this-name"}, "cannot be streamed"),
    ],
)
def test_what_cannot_be_streamed_is_said(tmp_path: Path, changes: dict, says: str, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RequestError, match=says):
        read_corpus(Store(tmp_path / "store"), corpus(tmp_path / "data", **changes), label="web")


def test_a_stream_needs_what_fixes_its_data() -> None:
    with pytest.raises(ValueError, match="revision"):
        Corpus.model_validate({"hub": "a/b", "text": "text", "time": "t", "stream": {"windows": WINDOWS, "tokens": 5}})
