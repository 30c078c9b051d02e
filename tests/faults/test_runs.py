"""Whole runs that are killed, interrupted, raced and damaged, through the command line as a person would."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.test_cli import here
from tests.forked import Command
from tests.run.small import recipe

import coterie


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A recipe that trains long enough to be stopped in the middle."""
    raw = recipe(tmp_path / "data")
    raw["train"] |= {"tokens": 12_000, "save_every": 1_000}
    del raw["single"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path / "recipe.yaml"


def start(file: Path, *more: str, store: str = "store") -> Command:
    return Command("run", file.name, "--store", store, *more, cwd=file.parent)


def finish(process: Command) -> tuple[str, str]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out, err


def summary(file: Path, out: str = "runs/small") -> dict[str, Any]:
    return json.loads((file.parent / out / "summary.json").read_text())


def wait_for_checkpoint(file: Path, process: Command, store: str = "store") -> None:
    limit = time.monotonic() + 120
    while not list((file.parent / store / "work").glob("*/checkpoint-*")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit, "no checkpoint in two minutes"
        time.sleep(0.02)


def test_interrupted_it_says_how_to_go_on(file: Path) -> None:
    process = start(file)
    wait_for_checkpoint(file, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with the same command: coterie run recipe.yaml" in err
    assert "Traceback" not in err
    assert not list((file.parent / "store/temp").glob("*"))


@pytest.mark.slow
def test_two_processes_train_each_expert_once(file: Path) -> None:
    both = [start(file, "--out", "a"), start(file, "--out", "b")]
    said = [finish(p)[1] for p in both]
    a, b = summary(file, "a"), summary(file, "b")
    assert list(a["experts"]) == list(b["experts"])
    for digest in a["experts"]:
        assert [a["experts"][digest]["trained"], b["experts"][digest]["trained"]].count(True) == 1
    assert any("waiting" in s for s in said) or a["reuse"]["trained"] in (0, 2)
    assert a["evaluation"] == b["evaluation"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe's data, store and results."""
    home = tmp_path_factory.mktemp("finished")
    coterie.run(recipe(home / "data"), store=home / "store", out=home / "out")
    return home


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["experts", "scores", "blocks", "mixtures"])
def test_a_damaged_artifact_is_named_set_aside_and_made_again(
    finished: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((finished / "out/summary.json").read_text())
    home = shutil.copytree(finished, tmp_path / "home")
    victim = next(p for p in sorted((home / "store" / kind).glob("*/*")) if p.suffix in (".safetensors", ".json"))
    victim.chmod(0o644)
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    (home / "recipe.yaml").write_text(yaml.safe_dump(recipe(home / "data")))
    words = ["run", str(home / "recipe.yaml"), "--store", str(home / "store"), "--out", str(home / "again")]
    assert here(monkeypatch, *words) == 0
    assert "set aside" in capsys.readouterr().err
    after = json.loads((home / "again/summary.json").read_text())
    assert after["evaluation"] == before["evaluation"]
    assert list(after["experts"]) == list(before["experts"])
    assert list((home / "store/quarantine").iterdir())


@pytest.mark.parametrize(
    ("setting", "code", "said"),
    [
        ("corpora.fruit.path=none.jsonl", 2, "none.jsonl"),
        ("corpora.fruit.text=body", 2, "text"),
        ("corpora.fruit.where={id: nobody}", 2, "0"),
        ("experts.fruit.train.learning_rate=1e12", 1, "not finite"),
    ],
)
def test_what_cannot_be_done_ends_in_one_clear_message(file: Path, setting: str, code: int, said: str) -> None:
    process = start(file, "--set", setting)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    assert said in err
    assert "  do:" in err
    assert "Traceback" not in err
