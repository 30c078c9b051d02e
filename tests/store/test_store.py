"""Ask, get; ask again, get the same."""

from __future__ import annotations

import json
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import WorkError
from coterie.spec.digest import canonical_json, digest
from coterie.store import Action, Artifact, DryStore, Planned, Store, artifact


def build(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "data.txt").write_text("data")
    (folder / "facts.json").write_text('{"rows": 3}')
    return {"threads": 1}


def forbidden(folder):
    raise AssertionError("built again")


ACTION = Action("corpora", {"a": 1}, {"raw": "0" * 64})


def test_made_once_and_found(tmp_path):
    store = Store(tmp_path)
    made = store.make(ACTION, build, label="meetings")
    assert not made.reused
    assert store.make(ACTION, forbidden, label="meetings") is made
    found = Store(tmp_path).make(ACTION, forbidden, label="another name")
    assert found.reused
    assert (found.digest, found.path, found.files, found.made) == (made.digest, made.path, made.files, made.made)
    assert found.facts == {"rows": 3}
    assert found.file("sub/data.txt").read_text() == "data"
    assert made.made["threads"] == 1
    assert made.made["seconds"] >= 0
    assert store.used == {ACTION.key: made}


def test_manifest_tells_where_it_came_from(tmp_path):
    made = Store(tmp_path).make(ACTION, build, label="meetings")
    data = made.file("manifest.json").read_text()
    manifest = json.loads(data)
    assert manifest["spec"] == {"a": 1}
    assert manifest["inputs"] == {"raw": "0" * 64}
    assert manifest["kind"] == "corpora"
    assert manifest["files"]["sub/data.txt"]["size"] == 4
    assert "meetings" not in data
    assert str(tmp_path) not in data


def test_objects_are_read_only(tmp_path):
    made = Store(tmp_path).make(ACTION, build, label="")
    for path in [made.path, *made.path.rglob("*")]:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o222


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_any_spec_survives_the_way_through_a_file(spec):
    action = Action("corpora", spec)
    assert digest(json.loads(canonical_json(action.statement))) == action.key


def test_a_spec_that_would_not_survive_is_our_bug():
    with pytest.raises(AssertionError, match="survive"):
        Action("corpora", {"a": {10: "ten", 9: "nine"}})
    with pytest.raises(AssertionError):
        Action("sandwiches", {})


@pytest.mark.parametrize(
    "other",
    [
        Action("blocks", {"a": 1}, {"raw": "0" * 64}),
        Action("corpora", {"a": 1.0}, {"raw": "0" * 64}),
        Action("corpora", {"a": 1, "b": None}, {"raw": "0" * 64}),
        Action("corpora", {"a": 1}, {"raw": "1" * 64}),
        Action("corpora", {"a": 1}, {"cooked": "0" * 64}),
        Action("corpora", {"a": 1}, {"raw": "0" * 64}, ("torch",)),
        Action("corpora", {"a": 1}, {"raw": "0" * 64}, numerics="cpu-fp32"),
    ],
)
def test_everything_that_decides_is_in_the_key(other):
    assert other.key != ACTION.key


def test_format_and_library_versions_are_in_the_key(monkeypatch):
    before = Action("corpora", {}, libraries=("torch",)).key
    monkeypatch.setattr(artifact, "_version", lambda name: "0.0.1")
    assert Action("corpora", {}, libraries=("torch",)).key != before
    before = Action("corpora", {}).key
    monkeypatch.setitem(artifact.FORMATS, "corpora", 99)
    assert Action("corpora", {}).key != before


def test_content_digest_ignores_other_files(tmp_path):
    def other_facts(folder):
        build(folder)
        (folder / "facts.json").write_text("{}")

    one = Store(tmp_path / "one").make(ACTION, build, label="")
    two = Store(tmp_path / "two").make(ACTION, other_facts, label="")
    assert one.digest != two.digest
    assert one.content("sub/data.txt") == two.content("sub/data.txt")
    assert one.content("sub/data.txt", "facts.json") != two.content("sub/data.txt", "facts.json")


def test_a_failed_build_leaves_nothing(tmp_path):
    def failing(folder):
        (folder / "half").write_text("half")
        raise WorkError("the loss is not finite")

    store = Store(tmp_path)
    with pytest.raises(WorkError, match="not finite"):
        store.make(ACTION, failing, label="")
    assert list((tmp_path / "temp").iterdir()) == []
    assert store.used == {}
    assert not store.make(ACTION, build, label="").reused


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_only_plain_files_are_published(tmp_path, what):
    def odd(folder):
        (folder / "dir").mkdir()
        (folder / "dir" / "odd").symlink_to("/etc") if what == "link" else os.mkfifo(folder / "dir" / "odd")

    with pytest.raises(WorkError, match="only plain files"):
        Store(tmp_path).make(ACTION, odd, label="")


def test_a_file_with_a_second_name_is_our_bug(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    with pytest.raises(AssertionError, match="another link"):
        Store(tmp_path / "store").make(ACTION, lambda folder: os.link(mine, folder / "x"), label="")
    assert mine.stat().st_mode & 0o200


def test_scratch_outlives_a_failure_and_goes_with_success(tmp_path):
    store = Store(tmp_path)
    scratch = store.scratch(ACTION)
    assert not scratch.exists()

    def failing(folder):
        scratch.mkdir(parents=True)
        (scratch / "step-1").write_text("1")
        raise OSError("the power went")

    with pytest.raises(WorkError, match="went"):
        store.make(ACTION, failing, label="expert")
    assert Store(tmp_path).scratch(ACTION) == scratch
    assert (scratch / "step-1").exists()
    store.make(ACTION, build, label="expert")
    assert not scratch.exists()


def test_a_dry_run_plans_and_touches_nothing(tmp_path):
    Store(tmp_path).make(ACTION, build, label="meetings")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    dry = DryStore(tmp_path)
    found = dry.make(ACTION, forbidden, label="meetings")
    missing = Action("blocks", {}, {"documents": found.content("sub/data.txt")})
    planned = dry.make(missing, forbidden, label="blocks", tokens=1000)
    further = dry.make(Action("experts", {}, {"blocks": planned.content("blocks.safetensors")}), forbidden, label="expert")
    dry.make(missing, forbidden, label="blocks again")
    assert not found.planned
    assert isinstance(planned, Planned)
    assert isinstance(further, Planned)
    meetings, blocks, expert = dry.steps.values()
    assert (meetings.kind, meetings.label, meetings.cached, meetings.needs) == ("corpora", "meetings", True, ())
    assert (blocks.kind, blocks.cached, blocks.tokens) == ("blocks", False, 1000)
    assert (expert.kind, expert.label, expert.cached, expert.needs) == ("experts", "expert", False, (blocks.key,))
    dry.keep(tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert DryStore(tmp_path / "nowhere").make(ACTION, forbidden, label="").planned
    assert not (tmp_path / "nowhere").exists()


def test_bytes_are_hashed_once_a_process(tmp_path, monkeypatch):
    from coterie.store import objects

    hashed = []
    real = objects.sha256
    monkeypatch.setattr(objects, "sha256", lambda path: hashed.append(path.name) or real(path))
    store = Store(tmp_path)
    made = store.make(ACTION, build, label="")
    hashed.clear()  # of publishing
    for _ in range(3):
        store.make(ACTION, forbidden, label="")
        store.find(ACTION)
    assert hashed == []
    other = Store(tmp_path)
    for _ in range(3):
        other.make(ACTION, forbidden, label="")
    assert sorted(hashed) == ["data.txt", "facts.json"]
    os.utime(made.file("facts.json"))
    assert other.make(ACTION, forbidden, label="").reused
    assert len(hashed) == 4


def test_an_artifact_may_lie_elsewhere(tmp_path):
    (tmp_path / "facts.json").write_text('{"x": 1}')
    assert Artifact("weights", "0" * 64, tmp_path).facts == {"x": 1}
