"""Links in a run's folder: they cost nothing, replace only their like, and damage through them is noticed."""

from __future__ import annotations

import errno
import json
import os

import pytest
from tests.faults import harness as h

from coterie.errors import RequestError
from coterie.store import Artifact, Store, link_tree


def listing(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["links", "copies"])
def kind(request, monkeypatch):
    if request.param == "copies":

        def refuse(*args, **kwargs):
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", refuse)
    return request.param


def test_same_files(tmp_path, kind):
    made = h.make(tmp_path / "store")
    target = link_tree(made, tmp_path / "out" / "experts" / "x")
    assert listing(target) == listing(made.path)
    for path in target.rglob("*"):
        assert path.is_dir() or not path.stat().st_mode & 0o222
        if path.is_file() and path.name != "manifest.json":
            assert path.samefile(made.path / path.relative_to(target)) == (kind == "links")


def test_again_changes_nothing(tmp_path, kind):
    made = h.make(tmp_path / "store")
    target = link_tree(made, tmp_path / "out")
    before = [(path, path.stat().st_ino, path.stat().st_ctime_ns) for path in sorted(target.rglob("*"))]
    link_tree(made, target)
    assert [(path, path.stat().st_ino, path.stat().st_ctime_ns) for path in sorted(target.rglob("*"))] == before


def test_replaces_an_older_one(tmp_path, kind):
    one, two = h.make(tmp_path / "store", 0), h.make(tmp_path / "store", 1)
    target = link_tree(one, tmp_path / "out" / "x")
    link_tree(two, target)
    assert listing(target) == listing(two.path)
    assert os.listdir(target.parent) == ["x"]
    assert h.broken(tmp_path / "store") == []


def test_mended_when_a_file_is_missing_or_changed(tmp_path, kind):
    made = h.make(tmp_path / "store")
    target = link_tree(made, tmp_path / "out")
    (target / "facts.json").unlink()
    link_tree(made, target)
    assert listing(target) == listing(made.path)
    (target / "facts.json").unlink()
    (target / "facts.json").write_text("an edit")
    link_tree(made, target)
    assert listing(target) == listing(made.path)


@pytest.mark.parametrize("what", ["folder", "file", "more", "manifest"])
def test_never_deletes_what_is_not_ours(tmp_path, what):
    made = h.make(tmp_path / "store")
    target = tmp_path / "out"
    if what == "file":
        target.write_text("mine")
    elif what == "more":
        link_tree(h.make(tmp_path / "store", 1), target)
        (target / "inner" / "mine.txt").write_text("mine")
    else:
        target.mkdir()
        (target / ("manifest.json" if what == "manifest" else "mine.txt")).write_text("{}")
    before = listing(target)
    with pytest.raises(RequestError, match="did not put there") as error:
        link_tree(made, target)
    assert error.value.where == str(target)
    assert listing(target) == before
    assert sorted(os.listdir(tmp_path)) == ["builds-0", *(["builds-1"] if what == "more" else []), "out", "store"]


def test_several_in_one(tmp_path, kind):
    """A mixture with its experts inside: one tree, one manifest, replaced as one."""
    whole, one, two = (h.make(tmp_path / "store", number) for number in range(3))
    target = tmp_path / "out" / "mixture"
    link_tree(whole, target, {"experts/a": one, "experts/b": two})
    assert listing(target / "experts" / "a").items() <= listing(one.path).items()
    manifest = json.loads((target / "manifest.json").read_bytes())
    assert manifest["parts"] == {".": whole.digest, "experts/a": one.digest, "experts/b": two.digest}
    assert set(manifest["files"]) == set(listing(target)) - {"manifest.json"}
    link_tree(whole, target, {"experts/a": two})
    assert not (target / "experts" / "b").exists()
    assert (target / "experts" / "a" / "facts.json").read_bytes() == two.file("facts.json").read_bytes()


def test_a_persons_own_files_are_copied(tmp_path):
    """A checkpoint outside the store: who trains on in the run's folder must not overwrite the original."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    target = link_tree(Artifact("weights", "0" * 64, tmp_path / "mine", {"config.json": "1" * 64}), tmp_path / "out")
    assert not (target / "config.json").samefile(tmp_path / "mine" / "config.json")
    assert (tmp_path / "mine" / "config.json").stat().st_mode & 0o200


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    made = h.make(tmp_path / "store")
    assert listing(link_tree(made, tmp_path / "out")) == listing(made.path)


@pytest.mark.parametrize("same_process", [True, False])
def test_damage_through_a_link_is_noticed(tmp_path, same_process, heard):
    root = tmp_path / "store"
    store = Store(root)
    made = store.make(h.action(), h.build, label="thing")
    target = link_tree(made, tmp_path / "out")
    (target / "inner" / "b.txt").chmod(0o644)
    (target / "inner" / "b.txt").write_text("B")  # same size
    store = store if same_process else Store(root)
    again = store.make(h.action(), h.build, label="thing")
    assert again.digest == made.digest
    assert not again.reused
    assert h.broken(root) == []
    assert "b.txt does not match its sha256" in heard.readouterr().err
    link_tree(again, target)
    assert (target / "inner" / "b.txt").read_text() == "b"


def test_linking_alone_makes_nothing_old(tmp_path):
    """A link changes the inode's ctime: the object is read again, and still counts as made by this run."""
    store = Store(tmp_path / "store")
    made = store.make(h.action(), h.build, label="thing")
    link_tree(made, tmp_path / "out")
    again = store.make(h.action(), h.build, label="thing")
    assert (again.digest, again.reused) == (made.digest, False)


def test_killed_at_every_step(tmp_path):
    one, two = h.make(tmp_path / "store", 0), h.make(tmp_path / "store", 1)
    target = tmp_path / "out" / "x"
    link_tree(one, target)
    steps = h.steps_of(lambda: link_tree(two, target), tmp_path)
    for number in range(1, steps + 1):
        link_tree(one, target)

        def doomed(number=number):
            h.watch(h.nth(number, lambda event, path: h.die()))
            link_tree(two, target)

        h.in_child(doomed)
        assert not target.exists() or listing(target) in (listing(one.path), listing(two.path))
        link_tree(two, target)
        assert os.listdir(target.parent) == ["x"]
        assert h.broken(tmp_path / "store") == []
