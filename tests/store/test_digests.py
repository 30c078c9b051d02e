"""A file is hashed once, unless anything about it changed."""

from __future__ import annotations

import hashlib
import os
import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.faults import harness as h

from coterie.errors import RequestError, WorkError
from coterie.store import DryStore, Store, digests, sha256


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files whose bytes were read. Files count as settled at once."""
    names = []
    monkeypatch.setattr(digests, "sha256", lambda path: names.append(path.name) or sha256(path))
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)
    return names


def plain(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_once(tmp_path, hashed):
    file = tmp_path / "a.jsonl"
    file.write_text("data")
    store = Store(tmp_path / "store")
    for it, path in ((store, file), (store, str(file)), (Store(tmp_path / "store"), file)):
        assert it.digest_file(path) == plain(file)
    assert hashed == ["a.jsonl"]


def test_same_size_and_mtime_but_other_bytes(tmp_path, hashed):
    file = tmp_path / "a.jsonl"
    file.write_text("data")
    store = Store(tmp_path / "store")
    store.digest_file(file)
    before = file.stat()
    time.sleep(0.01)
    file.write_text("DATA")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert store.digest_file(file) == Store(tmp_path / "store").digest_file(file) == plain(file)


def test_another_file_in_its_place(tmp_path, hashed):
    file, other = tmp_path / "a", tmp_path / "b"
    file.write_text("data")
    other.write_text("DATA")
    store = Store(tmp_path / "store")
    store.digest_file(file)
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    other.replace(file)
    assert store.digest_file(file) == plain(file)


def test_a_file_that_was_just_written_is_not_noted(tmp_path):
    """Within one tick of the file system's clock a second change would look like the first."""
    file = tmp_path / "a"
    store = Store(tmp_path / "store")
    for text in ("data", "DATA", "Data") * 20:
        file.write_text(text)
        assert store.digest_file(file) == plain(file)
    assert not (tmp_path / "store" / "file-digests").exists()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=5), st.just(1.0) | st.floats(0, 1))
def test_damaged_notes_are_as_good_as_none(tmp_path_factory, changes, cut):
    home = tmp_path_factory.mktemp("notes")
    files = [home / name for name in "abc"]
    for file in files:
        file.write_text(file.name)
        os.utime(file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "_SETTLED_NS", 0)
        for file in files:
            Store(home / "store").digest_file(file)
    (notes,) = (home / "store" / "file-digests").iterdir()
    content = bytearray(notes.read_bytes())
    for place, byte in changes:
        content[int(place * (len(content) - 1))] = byte
    notes.write_bytes(content[: int(cut * len(content))])
    assert [Store(home / "store").digest_file(file) for file in files] == [plain(file) for file in files]


def test_many_writers(tmp_path, hashed):
    """Eight processes note at once: no note is lost or mixed up."""
    files = [tmp_path / f"file-{number}" for number in range(40)]
    for file in files:
        file.write_text(file.name)
    time.sleep(0.02)
    root = tmp_path / "store"

    def work(mine):
        store = Store(root)
        [store.digest_file(file) for file in mine]

    children = [h.start(lambda k=k: work(files[k::8])) for k in range(8)]
    assert [h.wait(child) for child in children] == [0] * 8
    hashed.clear()
    store = Store(root)
    assert [store.digest_file(file) for file in files] == [plain(file) for file in files]
    assert hashed == []


def test_a_dry_run_makes_no_store(tmp_path, hashed):
    (tmp_path / "a").write_text("data")
    assert DryStore(tmp_path / "store").digest_file(tmp_path / "a") == plain(tmp_path / "a")
    assert not (tmp_path / "store").exists()


def test_missing_and_unreadable(tmp_path):
    with pytest.raises(RequestError, match="cannot be read") as error:
        Store(tmp_path / "store").digest_file(tmp_path / "none.jsonl")
    assert "none.jsonl" in error.value.where
    with pytest.raises(RequestError):
        Store(tmp_path / "store").digest_file(tmp_path)


def test_changed_while_it_is_read(tmp_path, monkeypatch):
    file = tmp_path / "a"
    file.write_text("data")

    def meanwhile(path):
        digest = sha256(path)
        time.sleep(0.01)
        path.write_text("more data")
        return digest

    monkeypatch.setattr(digests, "sha256", meanwhile)
    with pytest.raises(WorkError, match="changed while"):
        Store(tmp_path / "store").digest_file(file)


def test_larger_than_memory(tmp_path):
    """Hashing streams: its memory does not follow the file's size."""
    file = tmp_path / "large"
    with file.open("wb") as stream:
        stream.truncate(64_000_000)
    tracemalloc.start()
    digest = Store(tmp_path / "store").digest_file(file)
    made = Store(tmp_path / "store").make(h.action(), lambda folder: os.rename(file, folder / "large"), label="large")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made.files["large"] == digest
    assert peak < 4_000_000
