"""What the README and the docs show is run: the recipe, the Python example, the commands, every YAML block."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter
from tests.docs import derived

from coterie.recipe import Recipe, read

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SMALL = {"500_000": "2_000", "hidden_size: 128, layers: 4, heads: 4": "hidden_size: 16, layers: 1, heads: 2", "2048": "300"}
"""The same recipe, in seconds."""


def marked(name: str) -> str:
    """The code block between two markers of the README."""
    text = (ROOT / "README.md").read_text()
    part = re.search(rf"<!-- {name}: start -->\n```\w+\n(.*?)```\n<!-- {name}: end -->", text, re.S)
    assert part, name
    return part[1]


def write_data(folder: Path) -> None:
    topics = ["rivers", "bridges", "boats", "mills"]
    notes = [
        {"id": f"n{i}", "question": f"What about {topics[i % 4]} {i}?", "answer": f"They are many, {i}."} for i in range(120)
    ]
    code = [{"title": f"# add {i}", "body": f"def add_{i}(a, b):\n    return a + b + {i}\n"} for i in range(120)]
    for name, rows in (("notes", notes), ("code", code)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_readmes_recipe_and_example_run(tmp_path: Path) -> None:
    write_data(tmp_path)
    text = marked("recipe")
    for large, small in SMALL.items():
        assert large in text
        text = text.replace(large, small)
    (tmp_path / "recipe.yaml").write_text(text)

    def python(code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "COTERIE_STORE": str(tmp_path / "store"), "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    lines = python(marked("example")).splitlines()
    assert (tmp_path / "runs/my-experts/report.html").exists()
    assert any(re.fullmatch(r"\d+\.\d+", line) for line in lines), "the loss is printed"
    assert "nll" in python(marked("mixing")), "the table is printed"
    assert (tmp_path / "my-mixture/config.json").exists()


def test_the_example_is_short() -> None:
    assert len(marked("example").strip().splitlines()) <= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_recipe_on_a_page_reads(page: Path, tmp_path: Path) -> None:
    write_data(tmp_path)
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S):
        part = yaml.safe_load(block)
        assert isinstance(part, dict)
        for key in ("corpora", "experts", "mixtures", "evaluation"):
            if key in part and not (key == "experts" and "per" in part[key]):
                TypeAdapter(Recipe.model_fields[key].rebuild_annotation()).validate_python(part[key])
        if {"name", "corpora", "experts"} <= part.keys():
            (tmp_path / "recipe.yaml").write_text(block)
            read(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        reached.add(page)
        linked = {(page.parent / link).resolve() for link in re.findall(r"\]\(([^)#:]+\.md)", page.read_text())}
        todo += linked - reached
    assert reached >= set(PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_on_pages_compiles_and_imports_what_there_is(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S):
        compile(block, page.name, "exec")
        exec("\n".join(re.findall(r"^(?:import|from) .+$", block, re.M)), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_on_pages_exist(page: Path) -> None:
    from coterie.cli import app

    verbs = {c.name or c.callback.__module__.rpartition(".")[2] for c in app.registered_commands} | {"store", "select"}  # type: ignore[union-attr]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for command in re.findall(r"^\$ (.+)$", page.read_text(), re.M):
        program, *rest = command.split()
        if program.endswith("coterie"):
            assert rest[0] in verbs, command
        else:
            assert program == "make", command
            assert rest[0] in targets, command


def test_contributing_states_the_floors_of_the_import_contract() -> None:
    there = {path.stem for path in (ROOT / "src/coterie").iterdir() if path.suffix == ".py" or path.is_dir()}
    assert {room for _, room in derived.rooms()} == there - {"__init__", "__main__", "__pycache__"}


def test_what_pages_say_of_kinds_and_floors_is_what_the_code_says() -> None:
    """In a process of its own: kinds that other tests define are not the docs'."""
    code = "from tests.docs.derived import stale; print(*stale())"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "", "run `make docs`"


def test_the_test_command_of_the_readme_is_what_ci_runs() -> None:
    assert "$ make test\n" in (ROOT / "README.md").read_text()
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(), re.M)


def test_every_invariant_names_its_test() -> None:
    page = (ROOT / "docs/invariants.md").read_text()
    rows = re.findall(r"^\| (\d+) \|.*\| `([\w/.]+)` \|$", page, flags=re.M)
    assert [int(n) for n, _ in rows] == list(range(1, 16))
    for _, file in rows:
        assert (ROOT / "tests" / file).exists(), file
