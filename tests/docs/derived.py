"""Parts of the docs that are made from the code: the floors of the house in CONTRIBUTING.md, and tables of kinds."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

from coterie.mixtures.adapters.adapter_routers import AdapterGate
from coterie.mixtures.layers.layer_gates import LayerGate
from coterie.routing.output_routers import OutputRouter

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


FAMILIES = {family.__name__: family for family in (OutputRouter, LayerGate, AdapterGate)}
KINDS = re.compile(r"(?<=<!-- kinds: )(\w+)( -->\n).*?(?=<!-- end -->)", re.S)
CONCEPTS = ROOT / "docs/concepts"


def concept(path: Path) -> str:
    """A page with the tables of kinds as they are declared."""
    return KINDS.sub(lambda found: f"{found[1]}{found[2]}\n{FAMILIES[found[1]].table()}\n\n", path.read_text())


def stale() -> dict[Path, str]:
    """Pages that are not as they would be made now, and what they would be."""
    made = {PAGE: page(), **{path: concept(path) for path in CONCEPTS.glob("*.md")}}
    return {path: text for path, text in made.items() if path.read_text() != text}


if __name__ == "__main__":
    for path, text in stale().items():
        path.write_text(text)
