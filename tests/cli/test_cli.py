"""The command line: quick, frozen, and clear when something is wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tests.forked import coterie as forked
from tests.recipe.test_read import DESIGN

from coterie.cli import main


def command(*arguments: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import sys; from coterie.cli import main; sys.argv[0] = 'coterie'; main()", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        check=False,
    )


def here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of a command in this process, which has loaded everything already."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(sys, "argv", ["coterie", *arguments])
    try:
        with pytest.raises(SystemExit) as end:
            main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return int(end.value.code or 0)


def test_help_loads_neither_torch_nor_the_rooms_that_need_it() -> None:
    code = (
        "import sys; sys.argv = ['coterie', '--help']\n"
        "from coterie.cli import main\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'polars', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "quickstart" in done.stdout


VERBS = {
    "quickstart": {"--out", "--store", "--set", "--dry-run", "--help"},
    "run": {"--store", "--out", "--set", "--dry-run", "--jobs", "--slurm", "--help"},
    "train": {"--store", "--out", "--set", "--dry-run", "--jobs", "--slurm", "--expert", "--help"},
    "mix": {"--store", "--out", "--set", "--dry-run", "--jobs", "--slurm", "--help"},
    "evaluate": {"--store", "--out", "--set", "--dry-run", "--jobs", "--slurm", "--help"},
    "generate": {"--time", "--max-new-tokens", "--temperature", "--top-k", "--top-p", "--seed", "--chat", "--help"},
    "export": {"--to", "--format", "--expand", "--dtype", "--shard-size", "--help"},
    "report": {"--format", "--help"},
    "recipe": {"--help"},
    "store": {"--help"},
    "grow": {
        "--corpus",
        "--train-on",
        "--alarm",
        "--prune",
        "--below",
        "--merge",
        "--above",
        "--mixture",
        "--store",
        "--set",
        "--help",
    },
    "select": {"--help"},
}
"""Every verb and option. Settings belong into recipes, with `--set` as the only override: a flag changes this on purpose."""


def test_no_verb_or_flag_appears_unnoticed() -> None:
    import typer.main

    from coterie.cli import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = {name: {o for p in c.params for o in p.opts if o.startswith("-")} | {"--help"} for name, c in commands.items()}
    assert found == VERBS


def test_every_verb_and_option_explains_itself() -> None:
    import typer.main

    from coterie.cli import app

    def explained(command: Any, path: str) -> int:
        assert re.match(r"[A-Z].*[a-z]", command.help or ""), path
        for parameter in command.params:
            assert re.match(r"\S.*\w", parameter.help or ""), f"{path} {parameter.name}"
        return 1 + sum(explained(inner, f"{path} {name}") for name, inner in getattr(command, "commands", {}).items())

    assert explained(typer.main.get_command(app), "coterie") > len(VERBS)


@pytest.mark.parametrize("verb", [*VERBS])
def test_help_shows_what_a_verb_does_and_its_options(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer.main

    from coterie.cli import app

    assert here(monkeypatch, verb, "--help") == 0
    shown = " ".join(capsys.readouterr().out.split())
    verb_ = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    assert shown.startswith(f"Usage: coterie {verb} ")
    assert " ".join(verb_.help.split()) in shown
    assert {word for word in VERBS[verb] if f" {word} " in f"{shown} "} == VERBS[verb]


def test_version_as_a_module_and_what_the_package_has() -> None:
    import coterie

    module = [sys.executable, "-m", "coterie", "--version"]
    shown = subprocess.run(module, capture_output=True, text=True, check=True).stdout
    assert shown == command("--version").stdout == f"coterie {coterie.__version__}\n"
    assert {"load", "run"} <= set(dir(coterie))
    assert all(getattr(coterie, name) for name in dir(coterie))


def test_a_shell_completes_verbs() -> None:
    done = command(COMP_WORDS="coterie re", COMP_CWORD="1", _COTERIE_COMPLETE="complete_bash")
    assert done.stdout.split() == ["report", "recipe"]


@pytest.mark.parametrize(
    ("given", "found"),
    [("runs/x", "runs/x/mixtures/learned, runs/x/experts/code"), ("runs/x/mixtures/lerned", "runs/x/mixtures/learned")],
)
@pytest.mark.parametrize("verb", [("generate", "a text"), ("export", "--to", "out")], ids=lambda verb: verb[0])
def test_where_no_model_is_those_near_are_named(
    verb: tuple[str, ...],
    given: str,
    found: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("mixtures/learned", "experts/code"):
        (tmp_path / "runs/x" / name).mkdir(parents=True)
        (tmp_path / "runs/x" / name / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert here(monkeypatch, verb[0], given, *verb[1:]) == 2
    message = capsys.readouterr().err
    assert f"found:    {found}\n" in message
    assert "did you mean runs/x/mixtures/learned?" in message


def test_a_wrong_recipe_ends_with_2_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        DESIGN.replace("tokens: 2_000_000}}\n  - {name: code", "tokenz: 5}}\n  - {name: code", 1)
    )
    done = command("run", "r.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown key\n  where:    r.yaml:")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = command("--debug", "run", "none.yaml", cwd=tmp_path)
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_an_unknown_option_ends_with_2(tmp_path: Path) -> None:
    assert command("run", "r.yaml", "--epochs", "3", cwd=tmp_path).returncode == 2


def test_recipe_prints_one_part() -> None:
    done = command("recipe", "train")
    assert done.stdout.startswith("## Train\n")
    assert "`learning_rate`" in done.stdout
    assert "## Corpus" not in done.stdout
    wrong = command("recipe", "nothing")
    assert wrong.returncode == 2
    assert "EarlyStopping" in wrong.stderr


def test_the_reference_page_is_current() -> None:
    page = Path(__file__).parents[2] / "docs/reference/recipe.md"
    assert page.read_text() == command("recipe").stdout, "run `make docs`"  # a process without the kinds of other tests


def test_report_of_a_folder_that_is_no_run(tmp_path: Path) -> None:
    done = command("report", str(tmp_path))
    assert done.returncode == 2
    assert "summary.json" in done.stderr


def test_generate_goes_on_from_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.run.small import recipe

    import coterie

    coterie.run(recipe(tmp_path / "data"), store=tmp_path / "store", out=tmp_path / "out")
    model = str(tmp_path / "out/mixtures/learned")
    plain = forked("generate", model, "apple", "--max-new-tokens", "4", cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr

    capsys.readouterr()
    drawn = []
    for _ in range(2):
        assert here(monkeypatch, "generate", model, "apple", "--temperature", "1", "--seed", "3", "--top-k", "20") == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1]
    assert drawn[0].strip()
    assert here(monkeypatch, "generate", model, "apple", "--time", "soon") == 2
    assert "not a date" in capsys.readouterr().err


def test_paths_that_the_locale_cannot_name_are_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unsaid(*_: object) -> None:
        "größe".encode("ascii")

    monkeypatch.setattr(import_module("coterie.run.execute"), "execute", unsaid)
    assert here(monkeypatch, "run", "recipe.yaml") == 1, "where file names are UTF-8 it is something else"
    capsys.readouterr()
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    for words in (["run", "größe.yaml"], ["run", "recipe.yaml"]):
        assert here(monkeypatch, *words) == 2
        assert "set PYTHONUTF8=1" in capsys.readouterr().err
