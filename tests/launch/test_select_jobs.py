"""Profiles as jobs: the same pool and the same choice as in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.test_cli import command
from tests.forked import coterie as forked
from tests.run.small import BASE
from tests.select.texts import rows

from coterie import launch
from coterie.recipe import read
from coterie.run import jobs as parallel
from coterie.run.parts import Parts
from coterie.select.profile_shards import SHARD_BYTES, profile_parts
from coterie.store import Store

SELECT = {
    "budget": {"docs": 40},
    "axes": {"cluster": {"k": 3, "mix": 0.4}, "format": {"mix": 0.2}},
    "rank": {"within": "format"},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small files that are large enough on the disk to be parts of their own: their rows end in much space."""
    folder = tmp_path_factory.mktemp("select")
    made = rows(240)
    for i in range(3):
        space = " " * (SHARD_BYTES // 2 // len(made[i::3]) + 1)
        lines = [json.dumps(row)[:-1] + space + "}" for row in made[i::3]]
        (folder / f"{i}.jsonl").write_text("\n".join(lines) + "\n")
    asked = {"seed": 3, "corpora": {"prose": {"path": "*.jsonl", "id": "id", "columns": ["topic"], "select": SELECT}}}
    (folder / "select.yaml").write_text(yaml.safe_dump(asked))
    return folder


def pick(home: Path, name: str, *words: str) -> Any:
    return forked("select", "pick", "select.yaml", "--out", f"out-{name}", "--store", name, *words, cwd=home)


def objects(home: Path, name: str, kind: str) -> set[str]:
    return {path.name for path in (home / name / kind).iterdir()}


@pytest.mark.slow
def test_jobs_choose_what_one_process_chooses(home: Path) -> None:
    alone, apart = pick(home, "alone"), pick(home, "apart", "--jobs", "2")
    assert alone.returncode == apart.returncode == 0, apart.stderr
    assert "shares of prose in jobs: 2, 2 at once" in apart.stderr
    assert "prose.1 | part 1/2: 2 profiled" in apart.stderr
    for kind in ("profiles", "topics", "selections", "corpora"):
        assert objects(home, "alone", kind) == objects(home, "apart", kind)
    files = [(home / f"out-{name}/selected.jsonl").read_bytes() for name in ("alone", "apart")]
    assert files[0] == files[1]
    assert files[0].count(b"\n") == 40
    again = pick(home, "apart", "--jobs", "2")
    assert "in jobs" not in again.stderr, "what is there is no job"


def test_a_share_and_jobs_exclude_each_other(home: Path) -> None:
    done = command("select", "profile", "select.yaml", "--part", "1/2", "--jobs", "2", "--store", "none", cwd=home)
    assert done.returncode == 2
    assert "--part" in done.stderr


def test_a_recipes_run_finds_what_its_jobs_profiled(home: Path) -> None:
    corpus = {"path": str(home / "*.jsonl"), "id": "id", "select": SELECT}
    raw = {
        "name": "r",
        "base": BASE,
        "corpora": {"prose": corpus},
        "experts": [{"name": "a", "corpus": "prose", "train": {"tokens": 9}}],
        "evaluation": [{"name": "losses", "corpora": ["prose"], "by": "topic"}],
    }
    c = Parts(read(raw), Store(home / "run"))
    place = launch.place(2, None)
    assert place is not None
    parallel.profile_selections(c, place)
    parts = profile_parts(c.store, c.corpus("prose"), label="prose")
    assert len(parts) == 3
    assert all(artifact.reused for pair in parts for artifact in pair)
