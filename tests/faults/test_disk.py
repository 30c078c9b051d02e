"""A disk that is full, fails, or may not be written: one clear message, no temp files, older results stay."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from importlib import import_module
from pathlib import Path

import pytest
from tests.faults import harness as h
from tests.run.small import recipe

import coterie
from coterie import progress
from coterie.errors import WorkError
from coterie.store import DryStore, Store, ls, prune, verify
from coterie.store.durable import discard

NOBODY = 65534


def _fails(code: int):
    """From the moment on, whatever needs the disk fails."""

    def fail(event: str, path: str) -> None:
        if event in h.NEEDS_ROOM:
            raise OSError(code, os.strerror(code), path)

    return fail


CODES = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_failing_from_some_moments_on(tmp_path, code):
    _fail_from(tmp_path, code, every=9)


@pytest.mark.slow
@pytest.mark.parametrize("code", CODES)
def test_failing_from_any_moment_on(tmp_path, code):
    _fail_from(tmp_path, code, every=1)


def _fail_from(tmp_path: Path, code: int, every: int) -> None:
    """At every step of making a second thing: WorkError, temp freed, the first is kept, and it works once there is room."""
    roots = h.fresh(tmp_path)
    first = next(roots)
    h.make(first, 0)
    steps = h.steps_of(lambda: h.make(first, 1), tmp_path)
    failed = 0
    for number in range(random.randint(1, every), steps + 1, every):
        root = next(roots)
        digest = h.make(root, 0).digest
        (root.parent / "builds-1").touch()

        def doomed(root=root, number=number):
            h.watch(h.nth(number, _fails(code), ever_after=True))
            try:
                h.make(root, 1)
            except WorkError as error:
                text = str(error)
                assert str(root.parent) in text
                if code in (errno.ENOSPC, errno.EDQUOT):
                    assert "the disk is full" in text
                    assert "GB free" in text
                    assert "prune" in text
                if code == errno.EROFS and "builds" not in text:
                    assert "cannot be written" in text
                os._exit(7)

        status = h.in_child(doomed)
        assert status in (0, 7)
        failed += status == 7
        assert list((root / "temp").iterdir()) == []
        assert h.broken(root) == []
        assert Store(root).find(h.action(0)).digest == digest
        h.make(root, 1)
        assert h.broken(root) == []
    assert failed > 2


@pytest.fixture
def small_disk():
    """A file system of 4 MB, where one can be mounted."""
    folder = Path(tempfile.mkdtemp())
    mount = shutil.which("mount")
    if os.geteuid() or not mount or subprocess.run([mount, "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]).returncode:
        pytest.skip("needs root to mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)
    folder.rmdir()


def _write_big(folder: Path) -> None:
    (folder / "big.bin").write_bytes(bytes(6_000_000))


def _write_in_native_code(folder: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(1_500_000, dtype=np.float32)}, folder / "big.safetensors")


def _write_parquet(folder: Path) -> None:
    import polars as pl

    pl.DataFrame({"x": [os.urandom(1000) for _ in range(6000)]}).write_parquet(folder / "big.parquet")


@pytest.mark.parametrize("write", [_write_big, _write_in_native_code, _write_parquet])
def test_full_disk(small_disk, write):
    root = small_disk / "store"
    kept = h.make(root, 0)
    checkpoint = Store(root).scratch(h.action(1))
    checkpoint.mkdir(parents=True)
    (checkpoint / "step-1").write_bytes(bytes(1000))
    free = shutil.disk_usage(small_disk).free
    with pytest.raises(WorkError, match="the disk is full: big thing could not be written") as error:
        Store(root).make(h.action(1), write, label="big thing")
    assert error.value.exit_code == 1
    assert shutil.disk_usage(small_disk).free > free - 100_000
    assert list((root / "temp").iterdir()) == []
    assert (checkpoint / "step-1").exists()
    assert Store(root).find(h.action(0)).digest == kept.digest
    assert h.broken(root) == []


def _fill(folder: Path) -> None:
    with (folder / "fill").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    assert shutil.disk_usage(folder).free == 0


def test_a_full_disk_can_still_be_read(small_disk):
    root = small_disk / "store"
    h.make(root, 0)
    _fill(small_disk)
    assert h.make(root, 0).reused
    assert len(ls(Store(root))) == 1
    assert verify(Store(root)).damaged == []
    assert prune(Store(root)).kept == 0  # and room can be made
    assert h.object_directories(root) == []


def test_other_errors_stay_themselves(tmp_path):
    def bug(folder: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Store(tmp_path / "store").make(h.action(), bug, label="thing")
    assert list((tmp_path / "store" / "temp").iterdir()) == []


@pytest.fixture
def foreign():
    """A store that this process may read and not write: (root, the user to be)."""
    home = Path(tempfile.mkdtemp())
    root = home / "store"
    h.make(root, 0)
    folders = [path for path in [home, root, *root.rglob("*")] if path.is_dir()]
    for folder in folders:
        folder.chmod(0o555)
    yield root, None if os.geteuid() else NOBODY
    for folder in folders:
        folder.chmod(0o755)
    discard(home)


def test_a_store_of_someone_else(foreign, capfd):
    """Reads work; writes say whose place it is. Nobody trains for hours first."""
    root, user = foreign
    digest = Store(root).find(h.action(0)).digest

    def visitor() -> None:
        assert Store(root).find(h.action(0)).digest == digest
        assert Store(root).make(h.action(0), h.build, label="found").reused
        assert DryStore(root).make(h.action(1), h.build, label="missing").planned
        assert len(ls(Store(root))) == 1
        assert verify(Store(root)).damaged == []
        store = Store(root)
        for write in (lambda: store.make(h.action(1), forbidden, label="new"), lambda: store.keep("/tmp/out")):
            with pytest.raises(WorkError, match="the store cannot be written") as error:
                write()
            assert str(root) in error.value.where
            assert str(os.getuid()) in error.value.found
            assert "--store" in error.value.do

    def forbidden(folder: Path) -> None:
        raise AssertionError("built for a store that cannot keep it")

    assert h.in_child(visitor, user=user) == 0, capfd.readouterr().err


def test_unreadable_is_not_damaged(tmp_path):
    """A file that this user may not read is somebody's, not rotten: nothing is set aside."""
    home = Path(tempfile.mkdtemp())
    root = home / "store"
    artifact = h.make(root, 0)
    home.chmod(0o755)
    artifact.file("facts.json").chmod(0)

    def visitor() -> None:
        with pytest.raises(WorkError, match="the store cannot be read") as error:
            Store(root).find(h.action(0))
        assert "facts.json" in error.value.where

    assert h.in_child(visitor, user=None if os.geteuid() else NOBODY) == 0
    assert h.object_directories(root) == [artifact.path]
    discard(home)


@pytest.mark.parametrize("place", ["file", "below a file"])
def test_impossible_places(tmp_path, place):
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / ("" if place == "file" else "store")
    with pytest.raises(WorkError) as error:
        Store(root).make(h.action(), h.build, label="thing")
    assert str(root) in error.value.where


def test_interrupted_by_hand(tmp_path, monkeypatch):
    """Ctrl-C in the middle of a build: nothing is left but checkpoints, and the process may decide what to say."""
    root = tmp_path / "store"
    monkeypatch.setattr(progress, "QUIET", True)

    def endless(folder: Path) -> None:
        (folder / "half").write_text("half")
        scratch = Store(root).scratch(h.action())
        scratch.mkdir(parents=True)
        (tmp_path / "started").touch()
        time.sleep(30)

    def interrupted() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            Store(root).make(h.action(), endless, label="thing")
        except KeyboardInterrupt:
            os._exit(7)

    child = h.start(interrupted)
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    assert h.wait(child) == 7
    assert list((root / "temp").iterdir()) == []
    assert h.object_directories(root) == []
    assert Store(root).scratch(h.action()).is_dir()
    assert not h.make(root).reused
    assert not Store(root).scratch(h.action()).exists()


def test_a_store_that_is_moved_while_something_is_made(tmp_path):
    def build(folder: Path) -> None:
        (tmp_path / "store").rename(tmp_path / "moved")
        raise RuntimeError("a library's own words for: no such file")

    with pytest.raises(WorkError, match="moved or deleted meanwhile") as error:
        Store(tmp_path / "store").make(h.action(), build, label="thing")
    assert "--store" in error.value.do
    assert h.make(tmp_path / "moved").digest == h.make(tmp_path / "other").digest


@pytest.mark.parametrize("name", ["[a]", "*", "a?b", "{x}"])
def test_a_place_whose_name_is_a_pattern_to_a_library(tmp_path, name):
    """polars reads such a path as a pattern unless it is told not to."""
    raw = recipe(tmp_path / "data", mixtures=[], single=None)
    done = coterie.run(raw, store=tmp_path / name, out=tmp_path / "out" / name)
    assert done.summary["evaluation"]["losses"]


def test_a_file_that_goes_between_two_steps_of_a_run_is_named(tmp_path, monkeypatch):
    gone = tmp_path / "store" / "corpora" / "facts.json"
    monkeypatch.setattr(import_module("coterie.run.execute"), "summarise", lambda *_, **__: gone.read_bytes())
    raw = recipe(tmp_path / "data", mixtures=[], single=None, evaluation=[])
    with pytest.raises(WorkError, match="small: files could not be used") as error:
        coterie.run(raw, store=tmp_path / "store", out=tmp_path / "out")
    assert error.value.where == str(gone)
    assert "--store" in error.value.do
