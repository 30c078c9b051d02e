"""What a recipe names, found: files, globs, lists, folders, saved datasets."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.corpora.conftest import table

from coterie.corpora.documents import read_corpus
from coterie.corpora.sources import resolve
from coterie.errors import RequestError
from coterie.select.select_settings import Corpus
from coterie.store import Store


def names(path: str | tuple[str, ...], **more) -> list[tuple[str, str]]:
    return [(s.name, s.format) for s in resolve(Corpus(path=path, **more), "c")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jsonl", "b.jsonl.gz", "sub/c.json", "sub/.hidden.jsonl", "__pycache__/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_files_globs_lists_and_folders(folder: Path) -> None:
    assert names(str(folder / "a.jsonl")) == [("a.jsonl", "jsonl")]
    assert names(f"{folder}/*.jsonl*") == [("a.jsonl", "jsonl"), ("b.jsonl.gz", "jsonl")]
    assert names(f"{folder}/**/*.json") == [("sub/c.json", "jsonl")]
    assert names((f"{folder}/sub/c.json", f"{folder}/a.jsonl")) == [("c.json", "jsonl"), ("a.jsonl", "jsonl")]
    assert names(str(folder)) == [("a.jsonl", "jsonl"), ("b.jsonl.gz", "jsonl"), ("sub/c.json", "jsonl")]
    assert names(str(folder / "a.jsonl"), format="csv") == [("a.jsonl", "csv")]


def test_a_name_with_a_glob_sign_is_a_file_if_there_is_one(folder: Path) -> None:
    (folder / "x[1].jsonl").write_text("{}")
    assert names(f"{folder}/x[1].jsonl") == [("x[1].jsonl", "jsonl")]


def test_saved_datasets_with_and_without_splits(tmp_path: Path, store: Store) -> None:
    import datasets

    datasets.disable_progress_bars()
    parts = {n: datasets.Dataset.from_dict({"text": [f"{n} {i}" for i in range(3)]}) for n in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert len(names(str(tmp_path / "saved"))) == 2
    (only,) = names(str(tmp_path / "saved"), split_name="test")
    assert only[1] == "arrow"
    made = read_corpus(store, Corpus(path=str(tmp_path / "saved"), split_name="test"), label="c")
    assert {row["text"] for row in table(made)} == {"test 0", "test 1", "test 2"}
    selected = parts["train"].select([2, 0])  # an index mapping is written out by save_to_disk
    selected.save_to_disk(tmp_path / "selected")
    made = read_corpus(store, Corpus(path=str(tmp_path / "selected")), label="c")
    assert {row["text"] for row in table(made)} == {"train 2", "train 0"}
    with pytest.raises(RequestError, match="no split 'valid'"):
        names(str(tmp_path / "saved"), split_name="valid")


def test_a_hub_dataset_is_read_from_what_the_library_keeps(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    datasets.disable_progress_bars()
    asked = []
    parts = {n: datasets.Dataset.from_dict({"text": [f"{n} {i}" for i in range(3)]}) for n in ("train", "test")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "kept")

    def fetch(hub: str, config: str | None, *, revision: str | None, split: str | None):
        asked.append((hub, config, revision, split))
        kept = datasets.load_from_disk(str(tmp_path / "kept"))
        return kept if split is None else kept[split]

    monkeypatch.setattr(datasets, "load_dataset", fetch)
    whole = read_corpus(store, Corpus(hub="a/b", config="c", revision="d"), label="c")
    part = read_corpus(store, Corpus(hub="a/b", split_name="test"), label="c")
    assert asked == [("a/b", "c", "d", None), ("a/b", None, None, "test")]
    assert len(table(whole)) == 6
    assert {row["text"] for row in table(part)} == {"test 0", "test 1", "test 2"}
    with pytest.raises(RequestError, match=r"set corpora\.c\.limit"):
        read_corpus(store, Corpus(hub="a/b", split_name="test[:10%]"), label="c")


@pytest.mark.parametrize(
    ("path", "more", "message"),
    [
        ("nothing.jsonl", {}, "no such file or folder"),
        ("*.csv", {}, "no file matches"),
        ("a.xyz", {}, "the file's ending does not tell its format"),
        ("empty", {}, "no file in"),
        ("mixed", {}, "several formats"),
        ("mixed", {"format": "csv"}, "no file that can be read"),
        ("mixed", {"format": "dataset"}, "no saved dataset"),
        ("a.jsonl", {"format": "dataset"}, "a saved dataset is a folder"),
        ("pipe.jsonl", {}, "not a regular file"),
    ],
)
def test_what_cannot_be_found_names_the_key(tmp_path: Path, path: str, more: dict, message: str) -> None:
    import os

    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    for name in ("a.jsonl", "a.xyz", "mixed/a.jsonl", "mixed/b.txt"):
        (tmp_path / name).write_text("x")
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(RequestError) as caught:
        names(str(tmp_path / path), **more)
    assert message in str(caught.value)
    assert "corpora.c." in str(caught.value)


def test_a_near_miss_is_suggested_and_a_file_is_not_read_twice(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"did you mean 'a\.jsonl'"):
        names(str(folder / "a.json"))
    with pytest.raises(RequestError, match="a file is named twice"):
        names((str(folder / "a.jsonl"), f"{folder}/*.jsonl"))
