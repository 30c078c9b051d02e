"""Invariant 12, through whole runs: what appears is whole and finite; what does not verify is set aside, named, made again.

The store's own faults (kill at every step, flipped bits, full disks, power loss) are in tests/faults."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tests.run.small import recipe

import coterie
from coterie import progress
from coterie.errors import WorkError
from coterie.experts import expert_training as outcome
from coterie.store import Store, verify


def asked(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two experts and one mixture, without what costs time."""
    plain = recipe(folder / "data", **changes)
    plain.pop("single")
    return plain | {"mixtures": plain["mixtures"][:1]}


def objects(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.glob("experts/*/model.safetensors"))}


def test_damage_is_set_aside_named_and_made_again(tmp_path, monkeypatch):
    heard: list[str] = []
    monkeypatch.setattr(progress, "QUIET", False)
    root = tmp_path / "store"
    coterie.run(asked(tmp_path), store=root, out=tmp_path / "out")
    before = objects(root)
    victim = root / sorted(before)[0]
    raw = bytearray(victim.read_bytes())
    raw[len(raw) // 2] ^= 1
    victim.chmod(0o644)
    victim.write_bytes(raw)
    monkeypatch.setattr("coterie.store.quarantine.say", heard.append)
    coterie.run(asked(tmp_path), store=root, out=tmp_path / "again")
    assert any("set aside" in line for line in heard)
    assert list((root / "quarantine").iterdir())
    assert objects(root) == before
    assert not verify(Store(root)).damaged


def test_a_run_that_diverges_publishes_no_expert(tmp_path):
    wild = asked(tmp_path, train={"tokens": 1500, "learning_rate": 1e18, "clip": 0.0, "precision": "fp32"})
    del wild["base"]["pretrain"]
    with pytest.raises(WorkError, match="diverged") as caught:
        coterie.run(wild, store=tmp_path / "store", out=tmp_path / "out")
    assert caught.value.kept
    assert objects(tmp_path / "store") == {}


@pytest.mark.parametrize("point", ["write", "check_moved"])
def test_killed_before_an_expert_is_whole_there_is_none(tmp_path, point):
    plain = getattr(outcome, point)

    def dying(*args: Any, **rest: Any) -> None:
        plain(*args, **rest)
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        setattr(outcome, point, dying)
        coterie.run(asked(tmp_path), store=tmp_path / "store", out=tmp_path / "out")
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    assert objects(tmp_path / "store") == {}
    coterie.run(asked(tmp_path), store=tmp_path / "store", out=tmp_path / "out")
    assert len(objects(tmp_path / "store")) == 3
    assert not verify(Store(tmp_path / "store")).damaged
