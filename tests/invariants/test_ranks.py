"""Invariants 7 and 14 for several ranks: one rank = two ranks; a killed run of two resumes as a straight one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.experts.making import base, blocks, settings

from coterie.errors import RequestError, WorkError
from coterie.experts.expert_actions import train_expert
from coterie.experts.train_settings import Train
from coterie.experts.training_request import Request
from coterie.store import Artifact, Store

torch.set_num_threads(1)
TWO = {"parallel": "ddp", "processes": 2}
CASES = {
    "a batch of 4 on two": {"batch_size": 4},
    "accumulated, uneven last step": {"batch_size": 2, "accumulation": 3, "tokens": 800},
    "one row each, stopped early": {"batch_size": 2, "early_stopping": {"every": 150, "patience": 2}, "schedule": "wsd"},
}


def expert(store: Store, **changes: object) -> Artifact:
    """The data is uneven on purpose: rows of the two ranks hold different numbers of targets."""
    return train_expert(
        Request(
            store,
            start=base(store),
            blocks=[blocks(store, 20, fill=0.4), blocks(store, 9, seed=1, masked=0.9)],
            valid=blocks(store, 5, seed=2),
            train=settings(**changes),
            seed=4,
        )
    )


def lines(artifact: Artifact) -> list[dict]:
    return [json.loads(line) for line in artifact.file("metrics.jsonl").read_text().splitlines()]


IN_SHORT = "accumulated, uneven last step"
"""The case that the default suite has; each costs ten seconds of imports a rank."""


@pytest.mark.parametrize(
    "changes", [pytest.param(c, id=n, marks=[] if n == IN_SHORT else pytest.mark.slow) for n, c in CASES.items()]
)
def test_two_ranks_train_the_expert_that_one_rank_trains(tmp_path, changes):
    one, two = expert(Store(tmp_path / "one"), **changes), expert(Store(tmp_path / "two"), **changes, **TWO)
    a, b = load_file(one.file("model.safetensors")), load_file(two.file("model.safetensors"))
    start = load_file(base(Store(tmp_path / "one")).file("model.safetensors"))
    assert max((a[n] - start[n]).abs().max() for n in a) > 1e-3, "nothing was learned: equality would mean nothing"
    assert max((a[n] - b[n]).abs().max() for n in a) <= 1e-5
    assert two.made["processes"] == 2
    for left, right in zip(lines(one), lines(two), strict=True):
        assert left.keys() == right.keys()
        assert all(left[key] == pytest.approx(right[key], abs=2e-5) for key in left)


def test_the_number_of_processes_is_not_part_of_an_expert(tmp_path):
    store = Store(tmp_path)
    assert not expert(store).reused
    assert expert(Store(tmp_path), **TWO).reused


@pytest.mark.slow
def test_killed_ranks_end_and_the_next_run_goes_on_from_their_checkpoint(tmp_path):
    straight = expert(Store(tmp_path / "straight"), tokens=1500, save_every=130, **TWO)
    script = (
        "from tests.invariants.test_ranks import expert, TWO\n"
        "from coterie.store import Store\n"
        f"expert(Store({str(tmp_path / 'killed')!r}), tokens=1500, save_every=130, **TWO)\n"
    )
    root = Path(__file__).parents[2]
    child = subprocess.Popen([sys.executable, "-c", script], cwd=root, stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while not list((tmp_path / "killed" / "work").glob("*/checkpoint-*")):
        assert child.poll() is None, child.stderr.read().decode()
        assert time.monotonic() < until
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    while any(str(child.pid) in line for line in _owners()):
        assert time.monotonic() < until, "ranks outlived their owner"
        time.sleep(0.1)
    found = sorted((tmp_path / "killed" / "work").glob("*/checkpoint-*"))
    resumed = expert(Store(tmp_path / "killed"), tokens=1500, save_every=130, **TWO)
    assert found, "there was nothing to resume from"
    assert resumed.digest == straight.digest


def _owners() -> list[str]:
    """The owners of running ranks, by number."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_text().split("\0")
        except OSError:
            continue
        if "coterie.launch.run_rank" in words:
            found.append(words[words.index("coterie.launch.run_rank") + 2])
    return found


@pytest.mark.slow
def test_an_error_on_the_ranks_reaches_the_person_as_it_was_raised(tmp_path):
    with pytest.raises(WorkError, match="diverged"):
        expert(Store(tmp_path), learning_rate=1e18, clip=0.0, **TWO)


def test_settings_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(ValueError, match="ignored without parallel"):
        Train(processes=2)
    with pytest.raises(ValueError, match="cannot be shared evenly"):
        Train(parallel="ddp", processes=3, batch_size=4)
    with pytest.raises(RequestError, match=r"train\.processes|without GPU"):
        expert(Store(tmp_path), parallel="ddp")
