"""A killed run, run again, publishes what an undisturbed one publishes, byte for byte; broken checkpoints are passed over.

The process that is killed is a fork of this one: SIGKILL from inside, at a chosen point, with no chance to clean up.
"""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.experts.making import base, blocks, settings

from coterie import progress
from coterie.errors import WorkError
from coterie.experts import expert_training as outcome
from coterie.experts import loop, training_checkpoints
from coterie.experts.expert_actions import train_expert
from coterie.experts.loop import Interrupt
from coterie.experts.training_request import Request
from coterie.models.checkpoint import checkpoint
from coterie.store import Artifact, Store

torch.set_num_threads(1)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(work: Callable[[], object], point: Callable[[], None]) -> None:
    """Run ``work`` in a fork in which ``point`` was called first (it plants the kill)."""
    pid = os.fork()
    if pid == 0:
        try:
            point()
            work()
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "the process was to be killed and ended by itself"
    assert os.WTERMSIG(status) == signal.SIGKILL


def after_step(step: int) -> Callable[[], None]:
    def point() -> None:
        plain = loop.Watch.on_step_end

        def mined(self, args, state, control, **rest):
            plain(self, args, state, control, **rest)
            if state.global_step == step:
                die()

        loop.Watch.on_step_end = mined

    return point


def in_call(place: object, name: str, number: int, *, half: bool = False) -> Callable[[], None]:
    """Die before the ``number``-th call of a function; with ``half``, of one that writes a file, after half of it."""

    def point() -> None:
        plain, calls = getattr(place, name), 0

        def mined(*args, **rest):
            nonlocal calls
            calls += 1
            if calls == number:
                if half:
                    plain(*args, **rest)
                    path = Path(args[1])
                    os.truncate(path, path.stat().st_size // 2)
                die()
            return plain(*args, **rest)

        setattr(place, name, mined)

    return point


class Case:
    """One kind of run, with its own copy of the store for each trial."""

    def __init__(self, tmp_path: Path, **kind: object) -> None:
        self.tmp_path, self.kind, self.stores = tmp_path, kind, 0
        self.dropout = kind.pop("dropout", False)
        self.held_out = kind.pop("held_out", False)
        self.changes = kind.pop("changes", {})
        self.expert = kind

    def store(self) -> Store:
        self.stores += 1
        return Store(self.tmp_path / f"store-{self.stores}")

    def run(self, store: Store) -> Artifact:
        start = base(store, "gpt2")
        if self.dropout:
            folder = self.tmp_path / "dropout"
            if not folder.exists():
                folder.mkdir()
                for name in start.files:
                    (folder / name).write_bytes(start.file(name).read_bytes())
                config = json.loads((folder / "config.json").read_text())
                (folder / "config.json").write_text(json.dumps(config | {"resid_pdrop": 0.3, "attn_pdrop": 0.3}))
            start = checkpoint(folder)
        return train_expert(
            Request(
                store,
                start=start,
                blocks=[blocks(store, 20), blocks(store, 9, seed=1)],
                valid=blocks(store, 5, seed=2) if self.held_out else None,
                train=settings(**({"save_every": 130} | self.changes)),
                seed=4,
                **self.expert,
            )
        )


CASES = {
    "dropout": {"dropout": True},
    "accumulation 2, bf16": {"changes": {"accumulation": 2, "batch_size": 2, "precision": "bf16"}},
    "accumulation 3, uneven last step": {"dropout": True, "changes": {"accumulation": 3, "batch_size": 1, "tokens": 800}},
    "epochs": {"changes": {"tokens": None, "epochs": 2.5}},
    "lora": {"kind": "lora", "changes": {"precision": "bf16"}},
    "early stopping": {
        "held_out": True,
        "changes": {"learning_rate": 0.1, "early_stopping": {"every": 100, "patience": 3}, "tokens": 1500},
    },
    "snapshots": {"changes": {"snapshots": 200, "schedule": "wsd"}},
}


@pytest.mark.parametrize("name", CASES)
def test_killed_and_run_again_is_the_straight_run(tmp_path: Path, name: str) -> None:
    case = Case(tmp_path, **CASES[name])
    straight = case.run(case.store())
    steps = straight.facts["steps"]
    store = case.store()
    for point in (after_step(1), after_step(steps // 2), after_step(steps - 1)):
        killed(lambda: case.run(store), point)
        assert not list((store.root / "experts").glob("*")) or name == "snapshots"
    assert list((store.root / "work").glob("*/checkpoint-*")), "nothing to resume from"
    assert case.run(store).digest == straight.digest


@pytest.mark.parametrize(
    "point",
    [
        in_call(training_checkpoints, "save_file", 2, half=True),  # in the first save
        in_call(training_checkpoints, "save_file", 6, half=True),  # in the third
        in_call(training_checkpoints, "sync", 11),
        in_call(os, "rename", 2),
        in_call(training_checkpoints.shutil, "rmtree", 8),
    ],
    ids=["first file", "later file", "flushing", "before the rename", "dropping old ones"],
)
def test_killed_while_saving(tmp_path: Path, point: Callable[[], None]) -> None:
    case = Case(tmp_path, dropout=True)
    straight = case.run(case.store())
    store = case.store()
    killed(lambda: case.run(store), point)
    assert case.run(store).digest == straight.digest
    assert not (store.root / "work").exists() or not list((store.root / "work").glob("*"))


def checkpoints(store: Store) -> list[Path]:
    return sorted((store.root / "work").glob("*/checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))


def _flip(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-5] ^= 1
    (folder / name).write_bytes(data)


DAMAGE = {
    "a bit of the weights": lambda f: _flip(f, "trainable.safetensors"),
    "a bit of the optimizer": lambda f: _flip(f, "optimizer.safetensors"),
    "optimizer lost": lambda f: (f / "optimizer.safetensors").unlink(),
    "state lost": lambda f: (f / "state.json").unlink(),
    "truncated": lambda f: os.truncate(f / "trainable.safetensors", 100),
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "empty manifest": lambda f: (f / "manifest.json").write_text(""),
    "another step's": lambda f: f.rename(f.with_name("checkpoint-10")),
}


@pytest.fixture(scope="module")
def half_done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Artifact, Path]:
    """A run killed with two checkpoints behind it, and the undisturbed result."""
    case = Case(tmp_path_factory.mktemp("half"), dropout=True)
    straight = case.run(case.store())
    store = case.store()
    killed(lambda: case.run(store), after_step(9))
    assert len(checkpoints(store)) == training_checkpoints.KEEP
    return case, straight, store.root


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path,
    half_done: tuple[Case, Artifact, Path],
    damage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case, straight, root = half_done
    store = Store(tmp_path / "copy")
    os.system(f"cp -r {root} {store.root}")
    newest = checkpoints(store)[-1]
    DAMAGE[damage](newest)
    monkeypatch.setattr(progress, "QUIET", False)
    assert case.run(store).digest == straight.digest
    said = capsys.readouterr().err.splitlines()
    assert len([line for line in said if "skipped" in line]) == 1
    older = checkpoints(Store(root))[0].name
    assert any(f"goes on from {older}" in line for line in said)


def test_without_a_good_checkpoint_it_starts_again(tmp_path: Path, half_done: tuple[Case, Artifact, Path]) -> None:
    case, straight, root = half_done
    store = Store(tmp_path / "copy")
    os.system(f"cp -r {root} {store.root}")
    for folder in checkpoints(store):
        _flip(folder, "optimizer.safetensors")
    assert case.run(store).digest == straight.digest


def test_a_checkpoint_holds_no_pickle(half_done: tuple[Case, Artifact, Path]) -> None:
    _, _, root = half_done
    for folder in checkpoints(Store(root)):
        assert {p.suffix for p in folder.iterdir()} == {".safetensors", ".json"}
        for path in folder.glob("*.json"):
            json.loads(path.read_text())


def test_saving_and_logging_settings_are_not_the_experts(tmp_path: Path) -> None:
    case = Case(tmp_path)
    store = case.store()
    first = case.run(store)
    case.changes = {"save_every": 90, "threads": 1}
    assert case.run(store).digest == first.digest
    assert case.run(case.store()).digest == first.digest  # made anew, with other saves
    case.changes = {"log_every": 2}
    assert case.run(store).digest == first.digest  # found by its key


def test_a_full_disk_while_saving_keeps_the_checkpoints_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    case = Case(tmp_path, dropout=True)
    straight = case.run(case.store())
    store, plain, calls = case.store(), training_checkpoints.save_file, 0

    def full(*args: object, **rest: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(*args, **rest)

    monkeypatch.setattr(training_checkpoints, "save_file", full)
    with pytest.raises(WorkError, match="disk is full"):
        case.run(store)
    assert len(checkpoints(store)) == 1
    monkeypatch.setattr(training_checkpoints, "save_file", plain)
    assert case.run(Store(store.root)).digest == straight.digest


def test_stopped_early_and_killed_before_it_was_published(tmp_path: Path) -> None:
    """Saving falls on the very step that stops: resuming from there would train past the end."""
    rule = {"every": 100, "patience": 2}
    case = Case(tmp_path, held_out=True, changes={"learning_rate": 0.1, "early_stopping": rule, "save_every": 50})
    case.changes |= {"tokens": 3000}
    straight = case.run(case.store())
    assert straight.facts["tokens"] < 3000
    store = case.store()
    killed(lambda: case.run(store), in_call(outcome, "write", 1))
    assert case.run(store).digest == straight.digest


def test_ctrl_c_ends_between_steps_with_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, dropout=True, changes={"save_every": 10**9})
    straight = case.run(case.store())
    store, plain = case.store(), loop.Loop.training_step

    def pressed(self, *args: object, **rest: object) -> torch.Tensor:
        if self.state.global_step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, *args, **rest)

    monkeypatch.setattr(loop.Loop, "training_step", pressed)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        case.run(store)
    assert signal.getsignal(signal.SIGINT) is handler
    assert [p.name for p in checkpoints(store)] == ["checkpoint-5"]
    monkeypatch.setattr(loop.Loop, "training_step", plain)
    assert case.run(Store(store.root)).digest == straight.digest


def test_ctrl_c_after_the_last_step_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, changes={"save_every": 10**9})
    straight = case.run(case.store())
    store = case.store()

    with monkeypatch.context() as during:
        during.setattr(Interrupt, "on_train_end", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            case.run(store)
    assert len(checkpoints(store)) == 1
    assert case.run(Store(store.root)).digest == straight.digest
