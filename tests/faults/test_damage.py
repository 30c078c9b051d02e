"""Bit rot, cuts, lost and added files: noticed before use, set aside, made again with the same digest."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from tests.faults import harness as h

from coterie.store import DryStore, Store, verify
from coterie.store.durable import discard


def _writable(path: Path) -> Path:
    for it in (path.parent, path):
        if it.exists():
            it.chmod(0o755)
    return path


def _flip(path: Path, bit: int) -> None:
    data = bytearray(_writable(path).read_bytes())
    bit %= 8 * len(data)  # a record that was made again may be shorter
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def _object(root: Path) -> Path:
    (folder,) = h.object_directories(root)
    return folder


def _record(root: Path) -> Path:
    (path,) = root.glob("actions/*/*.json")
    return path


def _again(root: Path, digest: str, *, rebuilt: bool = True) -> None:
    before = h.builds(root)
    artifact = h.make(root)
    assert artifact.digest == digest
    assert h.broken(root) == []
    assert h.builds(root) == before + rebuilt, "damage was not noticed" if rebuilt else "built without need"
    (evidence,) = root.glob("quarantine/*")
    discard(evidence)
    assert h.make(root).reused


def _flips(root: Path, files: list[str], count: int | None) -> None:
    """Flip one bit at a time: so many by chance, or each."""
    digest = h.make(root).digest
    generator = random.Random(os.urandom(8))
    for name in files:
        bits = 8 * (_record(root) if name == "record" else _object(root) / name).stat().st_size
        for bit in range(bits) if count is None else generator.sample(range(bits), count):
            _flip(_record(root) if name == "record" else _object(root) / name, bit)
            _again(root, digest, rebuilt=name != "record")


FILES = ["inner/deep/a.bin", "inner/b.txt", "facts.json", "manifest.json", "record"]


def test_flipped_bits(tmp_path):
    _flips(tmp_path / "store", FILES, 8)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_flipped_bit_of_manifest_and_record(tmp_path):
    _flips(tmp_path / "store", ["manifest.json", "record"], None)


@pytest.mark.slow
def test_many_flipped_bits(tmp_path):
    _flips(tmp_path / "store", ["inner/deep/a.bin", "facts.json"], 100)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [0, 1, -1])
def test_cut_short(tmp_path, name, size):
    root = tmp_path / "store"
    digest = h.make(root).digest
    path = _writable(_record(root) if name == "record" else _object(root) / name)
    if path.name == "b.txt" and size:
        path.write_text("bb")  # it is one byte long: lengthen it instead
    else:
        os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    _again(root, digest, rebuilt=name != "record")


@pytest.mark.parametrize("name", FILES[:-1])
def test_lost_file(tmp_path, name):
    root = tmp_path / "store"
    digest = h.make(root).digest
    _writable(_object(root) / name).unlink()
    _again(root, digest)


@pytest.mark.parametrize("what", ["file", "link", "pipe", "swapped", "linked file", "file in place of a directory"])
def test_added_or_replaced(tmp_path, what):
    root = tmp_path / "store"
    digest = h.make(root).digest
    folder = _writable(_object(root) / "inner")
    if what == "file":
        (folder / "more").write_text("")
    elif what == "link":
        (folder / "more").symlink_to("/etc")
    elif what == "pipe":
        os.mkfifo(folder / "more")
    elif what == "swapped":
        (folder / "b.txt").replace(folder / "x")
        shutil.copy(folder / "deep" / "a.bin", folder / "b.txt")
        (folder / "x").unlink()
    elif what == "linked file":
        (folder / "b.txt").replace(tmp_path / "b.txt")
        (folder / "b.txt").symlink_to(tmp_path / "b.txt")
    else:
        (folder / "deep").chmod(0o755)
        shutil.rmtree(folder / "deep")
        (folder / "deep").write_text("")
    _again(root, digest)


def test_record_of_another_action(tmp_path):
    """Each part is whole, and yet it is the wrong object: noticed, since the manifest says what it is."""
    root = tmp_path / "store"
    h.make(root, 1)
    foreign = _record(root).read_bytes()
    digest = h.make(root, 0).digest
    path = root / "actions" / "corpora" / f"{h.action(0).key}.json"
    assert path.read_bytes() != foreign
    path.write_bytes(foreign)
    _again(root, digest, rebuilt=False)


def test_lost_object_or_record(tmp_path):
    """An object is made again; a record alone is not worth training again."""
    root = tmp_path / "store"
    digest = h.make(root).digest
    _record(root).unlink()
    assert h.make(root).digest == digest
    assert h.builds(root) == 1
    discard(_object(root))
    assert h.make(root).digest == digest
    assert h.broken(root) == []
    assert h.builds(root) == 2


def test_damaged_object_without_a_record(tmp_path):
    """The rebuild runs into it when it publishes: the loser of a race must not trust the winner."""
    root = tmp_path / "store"
    digest = h.make(root).digest
    _record(root).unlink()
    _flip(_object(root) / "facts.json", 3)
    _again(root, digest)


@pytest.mark.parametrize("name", FILES)
def test_verify_names_it(tmp_path, name):
    root = tmp_path / "store"
    digest = h.make(root).digest
    assert verify(Store(root)).damaged == []
    _flip(_record(root) if name == "record" else _object(root) / name, 5)
    report = verify(Store(root))
    assert (report.objects, report.records) == ((1, 0) if name == "record" else (0, 1))
    ((place, reason),) = report.damaged
    assert place.endswith(f"{h.action().key}.json" if name == "record" else digest)
    assert name == "record" or name in reason
    assert verify(Store(root)).damaged == []
    assert h.make(root).digest == digest


def test_a_dry_run_tells_and_touches_nothing(tmp_path, heard):
    root = tmp_path / "store"
    h.make(root)
    _flip(_object(root) / "facts.json", 3)
    before = sorted(root.rglob("*"))
    dry = DryStore(root)
    assert dry.make(h.action(), h.build, label="thing").planned
    assert [(s.kind, s.label, s.cached) for s in dry.steps.values()] == [("corpora", "thing", False)]
    assert "facts.json does not match its sha256" in heard.readouterr().err
    assert sorted(root.rglob("*")) == before


def test_nothing_is_pickled(tmp_path):
    """All that the store writes for itself is JSON, or says who holds a lock."""
    root = tmp_path / "store"
    store = Store(root)
    store.make(h.action(), h.build, label="thing")
    store.keep(tmp_path / "out")
    old = tmp_path / "old"
    old.write_text("old")
    store.digest_file(old)
    files = [path for path in root.rglob("*") if path.is_file() and "inner" not in path.parts]
    for path in files:
        if path.suffix in (".json", ".jsonl"):
            assert [json.loads(line) for line in path.read_text().splitlines() if line]
        else:
            assert path.suffix == ".lock" or path.parent.name == "users"
            assert path.stat().st_size < 200
