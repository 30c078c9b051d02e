"""The floors of the house, from the import contract of pyproject.toml into CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "CONTRIBUTING.md"
MARKED = re.compile(r"(?<=<!-- floors: start -->\n).*?(?=<!-- floors: end -->)", re.S)


def rooms() -> list[tuple[int, str]]:
    """Every room with its floor, from the top down."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(c["layers"] for c in contracts if c["type"] == "layers")
    return [
        (len(layers) - i, r.strip().removeprefix("coterie.")) for i, layer in enumerate(layers) for r in layer.split("|")
    ]


def floors() -> str:
    """A table of rooms, each with its floor and the first sentence of its docstring."""
    rows = [f"| {floor} | `{room}` | {sentence(room)} |\n" for floor, room in rooms()]
    return "| floor | room | what is there |\n|---|---|---|\n" + "".join(rows)


def sentence(room: str) -> str:
    """The first sentence of a room's docstring."""
    path = ROOT / "src/coterie" / room
    source = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text()
    text = " ".join((ast.get_docstring(ast.parse(source)) or "").split())
    return re.split(r"(?<=[.])\s", text)[0]


def page() -> str:
    """CONTRIBUTING.md with the floors as they are."""
    return MARKED.sub(lambda _: floors(), PAGE.read_text())


if __name__ == "__main__":
    PAGE.write_text(page())
