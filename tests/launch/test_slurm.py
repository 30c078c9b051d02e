"""Jobs on SLURM: what it is told, and, where there is a cluster (`tests/launch/cluster.sh` makes one), that it does it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.launch.test_train_jobs import weights
from tests.run.small import recipe

import coterie
from coterie.errors import RequestError, WorkError
from coterie.launch import Job, run_jobs
from coterie.launch.slurm import OF_SUBMITIT, Slurm, parameters


@pytest.mark.parametrize(
    ("said", "minutes"),
    [
        (90, 90),
        ("90", 90),
        ("90:00", 90),
        ("0:30", 1),
        ("4:00:00", 240),
        ("1:30:30", 91),
        ("1-0", 1440),
        ("2-12", 3600),
        ("1-02:30", 1590),
        ("1-02:30:01", 1591),
    ],
)
def test_time_is_read_as_slurm_reads_it(said: Any, minutes: int) -> None:
    assert parameters({"time": said}) == {"time": minutes}


@pytest.mark.parametrize("said", ["soon", "", "-5", "1:2:3:4", "4h"])
def test_what_is_no_time_is_refused(said: str) -> None:
    with pytest.raises(RequestError, match="no length of time"):
        parameters({"time": said})


def test_parameters_are_passed_on_by_either_name() -> None:
    given = {
        "time": 5,
        "partition": "gpu",
        "cpus-per-task": "4",
        "mem_per_cpu": "2G",
        "gpus": "1",
        "reservation": "r",
        "exclusive": "true",
    }
    assert parameters({**given, "setup": "module load cuda"}) == {
        "time": 5,
        "partition": "gpu",
        "cpus_per_task": "4",
        "mem_per_cpu": "2G",
        "exclusive": True,
        "setup": ["module load cuda"],
        "srun_args": ["--cpus-per-task=4"],
        "additional_parameters": {"gpus": "1", "reservation": "r"},
    }


@pytest.mark.parametrize("name", ["partitoin", "nodes", "ntasks", "command"])
def test_what_a_job_cannot_have_is_refused_by_name(name: str) -> None:
    with pytest.raises(RequestError) as refused:
        parameters({"time": 5, name: 2})
    assert refused.value.where == f"--slurm {name}"
    assert "partition" in (refused.value.expected or "")


def test_a_job_needs_a_time() -> None:
    with pytest.raises(RequestError, match="how long may a job take"):
        parameters({"partition": "gpu"})


def test_submitit_knows_the_names_that_are_passed_to_it() -> None:
    from submitit import SlurmExecutor

    assert SlurmExecutor._valid_parameters() >= OF_SUBMITIT


def test_without_slurm_or_submitit_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RequestError, match="no SLURM here") as refused:
        Slurm({"time": 5})
    assert "--jobs N" in (refused.value.do or "")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RequestError, match="need submitit") as refused:
        Slurm({"time": 5})
    assert "coterie[slurm]" in (refused.value.do or "")


# on a cluster --------------------------------------------------------------------------------------------------------------


def up() -> bool:
    return shutil.which("sbatch") is not None and subprocess.run(["sinfo"], capture_output=True, check=False).returncode == 0


cluster = pytest.mark.skipif(not up(), reason="no SLURM answers here: see tests/launch/cluster.sh")
FEW = {"time": 10, "cpus-per-task": 1, "mem": "2GB"}


def until(true: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.2)
    return found


def queue() -> list[str]:
    """Jobs that have not ended: id, state."""
    return subprocess.check_output(["squeue", "--me", "--noheader", "--format=%A %T"], text=True).splitlines()


@pytest.mark.slurm
@cluster
def test_slurm_jobs_train_what_one_process_trains(tmp_path: Path) -> None:
    raw = recipe(tmp_path / "data", mixtures=[{"name": "average", "at": "outputs", "slots": ["fruit", "after"]}])
    raw["experts"] += [{"name": "after", "corpus": "tools", "from": "fruit"}]
    alone = coterie.run(raw, store=tmp_path / "alone", out=tmp_path / "out-alone")
    apart = coterie.run(raw, store=tmp_path / "apart", out=tmp_path / "out-apart", slurm=FEW, jobs=2)
    assert weights(tmp_path / "apart") == weights(tmp_path / "alone")
    assert apart.summary["reuse"] == alone.summary["reuse"]
    assert apart.summary["evaluation"] == alone.summary["evaluation"]
    assert not queue()


@pytest.mark.slurm
@cluster
def test_failed_and_cancelled_slurm_jobs_are_named(tmp_path: Path) -> None:
    class Cancelling(Slurm):
        def start(self, job: Job, log: Path) -> None:
            super().start(job, log)
            if job.name == "cancelled":
                self.end(["cancelled"])

    good = ("recipe", "train")
    jobs = [
        Job("wrong", ("report", "nowhere")),
        Job("next", good, frozenset({"wrong"})),
        Job("well", good),
        Job("cancelled", good),
    ]
    cancelling = Cancelling(FEW)
    cancelling.arrives = 5.0
    with pytest.raises(WorkError, match="3 of 4 jobs were not done") as failed:
        run_jobs(jobs, cancelling, tmp_path)
    found = failed.value.found or ""
    assert "wrong: exit code 2; error: " in found
    assert "next: not started: it needs wrong" in found
    assert "CANCELLED" in found
    assert "learning_rate" in (tmp_path / "well.log").read_text()


@pytest.mark.slurm
@cluster
def test_what_slurm_refuses_is_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="SLURM does not take the job") as refused:
        run_jobs([Job("a", ("recipe", "train"))], Slurm({**FEW, "partition": "nowhere"}), tmp_path)
    assert "partition" in (refused.value.found or "")


def long_work(tmp_path: Path, tokens: int) -> subprocess.Popen[str]:
    """A command whose one job is in the middle of training."""
    raw = recipe(tmp_path / "data", train={"tokens": tokens, "save_every": 2000, "precision": "fp32"}, mixtures=[])
    del raw["single"], raw["base"]["pretrain"], raw["experts"][1]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw))
    code = "import sys; from coterie.cli import main; sys.argv[0] = 'coterie'; main()"
    slurm = [word for name, value in FEW.items() for word in ("--slurm", f"{name}={value}")]
    words = ["train", "r.yaml", "--store", "store", "--out", "out", *slurm]
    owner = subprocess.Popen([sys.executable, "-c", code, *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    until(lambda: owner.poll() is not None or list((tmp_path / "store/work").glob("*/checkpoint-*")))
    assert owner.poll() is None, owner.stderr.read()  # type: ignore[union-attr]
    return owner


@pytest.mark.slurm
@cluster
def test_ctrl_c_cancels_slurm_jobs(tmp_path: Path) -> None:
    owner = long_work(tmp_path, 10_000_000)
    assert len(queue()) == 1
    owner.send_signal(signal.SIGINT)
    owner.communicate(timeout=60)
    assert owner.returncode == 130
    until(lambda: not queue(), seconds=60)
    assert not list((tmp_path / "store/experts").glob("*"))


@pytest.mark.slurm
@pytest.mark.timeout(600)
@cluster
def test_a_job_whose_time_is_up_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    owner = long_work(tmp_path, 60_000)
    number = queue()[0].split()[0]
    subprocess.check_call(["scancel", "--signal=USR2", number])  # as SLURM does so many seconds before the end
    until(lambda: queue() == [f"{number} PENDING"])  # SLURM holds it back for two minutes, where cred_expire is as it comes
    _, said = owner.communicate(timeout=400)
    assert owner.returncode == 0, said
    assert "fruit |   stopping after this step, with a checkpoint" in said
    assert "goes on from checkpoint-" in said
    assert len(weights(tmp_path / "store")) == 1
