"""The house keeps its shape: no circles, one name a file, no untyped public function, few calls between command and loop."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.house.rooms import ROOT, components, imports, modules

MODULES = modules(ROOT / "src")
FILES = list(MODULES.values())


def test_components_finds_circles() -> None:
    assert components({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert components({"a": {"b"}, "b": set()}) == []


def test_no_two_files_import_each_other_in_a_circle() -> None:
    assert components(imports(MODULES)) == []


def test_every_file_has_a_name_of_its_own() -> None:
    names = Counter(path.name for path in FILES if path.name != "__init__.py")
    assert [name for name, count in names.items() if count > 1] == []


def test_no_file_is_long() -> None:
    assert [f"{path.name}: {n}" for path in FILES if (n := len(path.read_text().splitlines())) > 500] == []


def test_nothing_is_kept_from_the_formatter() -> None:
    assert [path.name for path in FILES if "fmt: skip" in path.read_text() or "fmt: off" in path.read_text()] == []


def public_functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    def inside(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, ast.FunctionDef]]:
        for node in body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield prefix + node.name, node
            elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                yield from inside(node.body, f"{prefix}{node.name}.")

    return inside(ast.parse(path.read_text()).body, "")


def test_no_public_function_has_any_in_its_signature() -> None:
    """`Any` says nothing to whoever calls it."""
    bad = []
    for module, path in MODULES.items():
        for name, function in public_functions(path):
            arguments = function.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            hints = [a.annotation for a in every] + [function.returns]
            hints += [a.annotation for a in (arguments.vararg, arguments.kwarg) if a is not None]
            if any(re.search(r"\bAny\b", ast.unparse(hint)) for hint in hints if hint is not None):
                bad.append(f"{module}:{name}")
    assert bad == []


@pytest.mark.parametrize(
    "name", ["coterie", "coterie.recipe", "coterie.store", "coterie.cli", "coterie.launch", "coterie.report"]
)
def test_what_starts_a_command_loads_nothing_heavy(name: str) -> None:
    heavy = "torch transformers sklearn polars pyarrow numpy"
    code = f"import sys, {name}; print(*[m for m in {heavy.split()!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert found == []
