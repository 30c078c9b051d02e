"""`coterie select`: from a recipe or from data files, with the exit codes of the contract."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.cli.test_cli import command
from tests.select.texts import rows, write
from typer.testing import CliRunner

from coterie.errors import CoterieError

FLAGS = {
    "profile": {"--store", "--out", "--set", "--corpus", "--jobs", "--slurm", "--part", "--help"},
    "plan": {"--store", "--out", "--set", "--corpus", "--jobs", "--slurm", "--relax", "--help"},
    "pick": {"--store", "--out", "--set", "--corpus", "--jobs", "--slurm", "--relax", "--help"},
    "report": {"--store", "--out", "--set", "--corpus", "--jobs", "--slurm", "--paired", "--help"},
    "why": {"--store", "--set", "--corpus", "--help"},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    write(tmp_path / "c.jsonl", rows(150))
    select = {
        "budget": {"docs": 30},
        "axes": {"cluster": {"k": 3, "mix": 0.4}, "format": {"target": {"story": 0.7, "lesson|note": 0.3}}},
        "rank": {"within": "format"},
    }
    asked = {"seed": 3, "corpora": {"prose": {"path": "c.jsonl", "id": "id", "columns": ["topic"], "select": select}}}
    (tmp_path / "select.yaml").write_text(yaml.safe_dump(asked))
    return tmp_path / "select.yaml"


def test_no_verb_or_flag_appears_unnoticed() -> None:
    import typer.main

    from coterie.cli.select_command import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = {name: {o for p in c.params for o in p.opts if o.startswith("-")} | {"--help"} for name, c in commands.items()}
    assert found == FLAGS


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COTERIE_STORE", str(tmp_path / "store"))


def run(*arguments: str, verb: str = "select") -> tuple[int, str, str]:
    """Exit code, standard output, the error; in this process, because starting one takes a second."""
    from coterie.cli import app

    done = CliRunner().invoke(app, [verb, *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        assert isinstance(done.exception, CoterieError), done.exception
        return done.exception.exit_code, done.stdout, str(done.exception)
    return done.exit_code, done.stdout, ""


def test_the_exit_code_reaches_the_shell(recipe: Path) -> None:
    few = "corpora.prose.select.axes.format.target={note: 0.9, story: 0.1}"
    done = command("select", "plan", "select.yaml", "--set", few, cwd=recipe.parent)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: the plan cannot be met")


def test_profile_plan_pick_report_why(recipe: Path) -> None:
    folder = recipe.parent
    code, said, _ = run("profile", "select.yaml", "--out", "profile")
    assert code == 0
    assert "150 rows" in said
    assert "c00" in said
    assert (folder / "profile/topics/topics.npz").exists()
    code, said, _ = run("plan", "select.yaml", "--out", "plan")
    assert code == 0
    assert "must be missed in any selection (documents): cluster 0, format 0, total 0" in said
    assert json.loads((folder / "plan/plan.json").read_text())["feasible"]
    code, said, _ = run("pick", "select.yaml", "--out", "out")
    assert code == 0
    chosen = [json.loads(line) for line in (folder / "out/selected.jsonl").open()]
    assert len(chosen) == 30
    assert sum(r["format"] == "story" for r in chosen) == 21
    assert {p.name for p in (folder / "out").iterdir()} == {"selected.jsonl", "plan.json", "report.json", "report.html"}
    assert json.loads((folder / "out/report.json").read_text())["funnel"]["selected"]["documents"] == 30
    code, said, _ = run("why", chosen[4]["id"], "select.yaml")
    assert code == 0
    assert "given out as number 5 of 30" in said
    code, said, _ = run("report", "select.yaml", "--out", "r2", "--set", "corpora.prose.select.budget.docs=20")
    assert code == 0
    assert "published" in said
    assert "proportional" in said


@pytest.mark.parametrize(
    "more", ["", "experts: []\n", "experts:\n", "mixtures: [{name: m, at: outputs, slots: [x], router: uniform}]\n"]
)
def test_a_recipe_that_only_selects(recipe: Path, more: str) -> None:
    """Every verb of `select` takes it; `run` says who does."""
    recipe.write_text(recipe.read_text() + more)
    out = ["--out", "out"]
    for name, rest in (("profile", []), ("plan", []), ("pick", out), ("report", out)):
        assert run(name, "select.yaml", *rest)[::2] == (0, ""), name
    assert run("why", "d3", "select.yaml")[0] == 0
    for dry in ([], ["--dry-run"]):
        code, _, error = run("select.yaml", *dry, verb="run")
        assert code == 2
        assert "the recipe only selects" in error
        assert "coterie select pick select.yaml --out DIR" in error


def test_an_ending_in_capitals_is_a_recipe(recipe: Path) -> None:
    upper = recipe.rename(recipe.with_name("SELECT.YAML"))
    assert run("plan", upper.name)[0] == 0


def test_an_infeasible_plan_ends_with_2_unless_relaxed(recipe: Path) -> None:
    few = ["--set", "corpora.prose.select.axes.format.target={note: 0.9, story: 0.1}"]
    code, said, error = run("plan", "select.yaml", *few)
    assert code == 2
    assert "note" in said, "the plan is shown before it is refused"
    assert "the plan cannot be met" in error
    assert "--relax" in error
    assert run("pick", "select.yaml", "--out", "out", *few)[0] == 2
    assert not (recipe.parent / "out/selected.jsonl").exists()
    code, said, _ = run("pick", "select.yaml", "--out", "out", "--relax", *few)
    assert code == 0
    assert any(line.startswith("short: ") and "note" in line for line in said.splitlines()), "what was relaxed is said"
    assert run("pick", "select.yaml", "--out", "out", *few)[0] == 2, "also when it was made relaxed"


def test_data_files_are_profiled_as_they_are(recipe: Path) -> None:
    folder = recipe.parent
    write(folder / "d.jsonl", rows(50, 9))
    code, said, _ = run("profile", "c.jsonl", "d.jsonl")
    assert code == 0
    assert "200 rows" in said
    code, said, _ = run("profile", "c.jsonl", "--part", "1/1")
    assert code == 0
    assert run("profile", "c.jsonl", "--part", "3/2")[0] == 2
    more = ["--set", "corpora.data.select.budget.docs=7"]
    assert run("pick", "c.jsonl", "--out", "out", *more)[0] == 0
    assert len((folder / "out/selected.jsonl").read_text().splitlines()) == 7


def test_what_is_wrong_is_said(recipe: Path) -> None:
    folder = recipe.parent
    code, _, error = run("why", "d9999", "select.yaml")
    assert code == 2
    assert "did you mean" in error
    asked = yaml.safe_load(recipe.read_text())
    asked["corpora"]["other"] = asked["corpora"]["prose"]
    (folder / "two.yaml").write_text(yaml.safe_dump(asked))
    code, _, error = run("plan", "two.yaml")
    assert code == 2
    assert "--corpus" in error
    assert run("plan", "two.yaml", "--corpus", "other")[0] == 0
    code, _, error = run("plan", "nothing.jsonl")
    assert code == 2
