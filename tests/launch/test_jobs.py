"""Many jobs on this machine: order, how many at once, what a failure leaves undone, who ends with whom."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tests.cli.test_cli import command
from tests.forked import Command
from tests.run.small import recipe

from coterie import launch
from coterie.errors import RequestError, WorkError
from coterie.launch import Job, run_jobs
from coterie.launch.job_queue import THREADS, Local, share
from coterie.store import Store, prune

GOOD, BAD = ("recipe", "train"), ("report", "nowhere")
"""Commands that are soon over, one well, one not."""


class Watched(Local):
    """Notes when jobs start and end, and what was running then."""

    def __init__(self, at_once: int) -> None:
        super().__init__(at_once)
        self.started: list[str] = []
        self.done: list[str] = []
        self.done_before: dict[str, set[str]] = {}
        self.most = 0

    def start(self, job: Job, log: Path) -> None:
        super().start(job, log)
        self.started.append(job.name)
        self.done_before[job.name] = set(self.done)
        self.most = max(self.most, len(self.started) - len(self.done))

    def ended(self, name: str) -> str | None:
        ended = super().ended(name)
        if ended is not None:
            self.done.append(name)
        return ended


def test_jobs_wait_for_what_they_need_and_for_room(tmp_path: Path) -> None:
    after = {"d": {"b", "c"}, "b": {"a"}, "c": {"a"}, "a": set(), "e": set()}
    place = Watched(2)
    run_jobs([Job(name, GOOD, frozenset(needs)) for name, needs in after.items()], place, tmp_path)
    assert sorted(place.done) == sorted(after)
    for name, needs in after.items():
        assert needs <= place.done_before[name]
    assert place.most == 2
    assert all("learning_rate" in (tmp_path / f"{name}.log").read_text() for name in after)


def test_what_does_not_need_a_failed_job_goes_on_and_one_error_says_all(tmp_path: Path) -> None:
    jobs = [
        Job("last", GOOD, frozenset({"next"})),
        Job("next", GOOD, frozenset({"wrong"})),
        Job("wrong", BAD),
        Job("well", GOOD),
    ]
    place = Watched(1)
    with pytest.raises(WorkError) as failed:
        run_jobs(jobs, place, tmp_path)
    assert sorted(place.started) == ["well", "wrong"]
    error = failed.value
    assert error.what.startswith("3 of 4 jobs were not done: wrong, next, last")
    assert "no summary.json" in error.found or "nowhere" in error.found
    assert str(tmp_path / "wrong.log") in error.found
    assert "next: not started: it needs wrong" in error.found
    assert "Traceback" not in str(error)
    assert "learning_rate" in (tmp_path / "well.log").read_text()


def test_a_killed_job_is_named_with_what_ended_it(tmp_path: Path) -> None:
    class Killing(Local):
        def start(self, job: Job, log: Path) -> None:
            super().start(job, log)
            self.processes[job.name].send_signal(signal.SIGKILL)

    with pytest.raises(WorkError, match="1 of 1 jobs was not done: a") as failed:
        run_jobs([Job("a", GOOD)], Killing(1), tmp_path)
    assert "SIGKILL" in failed.value.found


@pytest.mark.parametrize("said", [None, "3"])
def test_jobs_share_the_cores_unless_it_is_said_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None
) -> None:
    for name in THREADS:
        monkeypatch.delenv(name, raising=False)
    if said:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    half = str(max((os.cpu_count() or 1) // 2, 1))
    place = Local(2)
    place.start(Job("a", GOOD), tmp_path / "a.log")
    try:
        environment = until(psutil.Process(place.processes["a"].pid).environ)
        assert [environment[name] for name in THREADS] == [said or half, half, half]
    finally:
        place.end(["a"])


@pytest.mark.parametrize(
    ("seats", "visible", "gpus", "expected"),
    [
        (2, None, 0, [None, None]),
        (2, None, 1, [None, None]),
        (2, None, 4, ["0,2", "1,3"]),
        (3, None, 2, ["0", "1", "0"]),
        (2, "4,7,9", 16, ["4,9", "7"]),
        (2, "", 4, [None, None]),
        (1, None, 4, [None]),
    ],
)
def test_jobs_share_the_gpus(seats: int, visible: str | None, gpus: int, expected: list[str | None]) -> None:
    assert [share(seat, seats, visible, gpus).get("CUDA_VISIBLE_DEVICES") for seat in range(seats)] == expected


def test_no_jobs_at_once_is_a_wrong_request() -> None:
    with pytest.raises(RequestError, match="no jobs at once"):
        launch.place(0, None)
    assert launch.place(None, None) is None


# a whole command and its jobs ---------------------------------------------------------------------------------------------


def jobs_of(owner: int) -> list[psutil.Process]:
    words = ["coterie.launch.run_job", str(owner)]
    return [p for p in psutil.process_iter(["cmdline"]) if (p.info["cmdline"] or [])[2:4] == words]


def until(true: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.05)
    return found


def long_work(tmp_path: Path) -> Command:
    """A command with two jobs that would train for long."""
    raw = recipe(tmp_path / "data", train={"tokens": 10_000_000, "save_every": 2000, "precision": "fp32"}, mixtures=[])
    del raw["single"], raw["base"]["pretrain"]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw))
    words = ("train", str(tmp_path / "r.yaml"), "--store", str(tmp_path / "store"), "--jobs", "2")
    owner = Command(*words, cwd=tmp_path)
    work = tmp_path / "store/work"
    until(lambda: owner.poll() is not None or len({path.parent for path in work.glob("*/checkpoint-*")}) == 2)
    assert owner.poll() is None, owner.stderr
    assert len(jobs_of(owner.pid)) == 2
    return owner


@pytest.mark.slow
def test_jobs_end_when_their_owner_is_killed(tmp_path: Path) -> None:
    owner = long_work(tmp_path)
    owner.kill()
    owner.wait()
    until(lambda: not jobs_of(owner.pid), seconds=20)
    assert not list((tmp_path / "store/experts").glob("*")), "they did not end by being done"


@pytest.mark.slow
def test_ctrl_c_ends_jobs_with_a_checkpoint(tmp_path: Path) -> None:
    owner = long_work(tmp_path)
    owner.send_signal(signal.SIGINT)
    _, said = owner.communicate(timeout=60)
    assert owner.returncode == 130
    assert "go on with the same command" in said
    assert not jobs_of(owner.pid)
    logs = [path.read_text() for path in (tmp_path / "store/temp").glob("jobs*/*.log")]
    assert len(logs) == 2
    assert all("stopping after this step, with a checkpoint" in log for log in logs)
    (tmp_path / "runs/small").mkdir(parents=True, exist_ok=True)
    work = set((tmp_path / "store/work").glob("*/checkpoint-*"))
    assert not prune(Store(tmp_path / "store")).work, "the run rests on what its jobs have begun"
    assert {path.parent for path in work} == set((tmp_path / "store/work").iterdir())


def test_a_wrong_option_is_said_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe(tmp_path / "data")))
    for words, said in (
        (("--slurm", "time"), "--slurm takes KEY=VALUE"),
        (("--slurm", "time=5", "--slurm", "time=6"), "said twice"),
        (("--expert", "nobody"), "expected: base, fruit, tools"),
    ):
        done = command("train", "r.yaml", *words, "--store", "store", cwd=tmp_path)
        assert done.returncode == 2
        assert said in done.stderr
    assert not (tmp_path / "store").exists()
