"""The shape of a source tree: its rooms (folders and files right below ``coterie/``), the floor each is on, which imports
which, and circles of files.

    python -m tests.house.rooms [SRC]
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]


def modules(src: Path) -> dict[str, Path]:
    """Every file by its dotted name."""
    found = {}
    for path in sorted((src / "coterie").rglob("*.py")):
        parts = path.relative_to(src).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(files: dict[str, Path]) -> dict[str, set[str]]:
    """What each file imports of the others, inside functions and for the type checker too."""
    edges: dict[str, set[str]] = {}
    for module, path in files.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: a relative import"
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {name if name in files else str(node.module) for name in names}
        edges[module] = (found & files.keys()) - {module}
    return edges


def components(edges: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one node (Tarjan)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges[node]:
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            members = []
            while not members or members[-1] != node:
                members.append(stack.pop())
            if len(members) > 1:
                found.append(sorted(members))

    for node in edges:
        if node not in index:
            visit(node)
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "coterie"


def arrows(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Which room imports which; the package's own face is none."""
    found: dict[str, set[str]] = defaultdict(set)
    for module, others in edges.items():
        found[room(module)] |= {room(other) for other in others} - {room(module), "coterie"}
    found.pop("coterie", None)
    return found


def floors(between: dict[str, set[str]]) -> dict[str, int]:
    """Of each room: one above the highest that it imports, those of a circle on one floor."""
    whole = {name: next((tuple(c) for c in components(between) if name in c), (name,)) for name in between}
    height: dict[tuple[str, ...], int] = {}

    def of(group: tuple[str, ...]) -> int:
        if group not in height:
            height[group] = 0
            below = {whole[other] for name in group for other in between[name]} - {group}
            height[group] = 1 + max(map(of, below), default=0)
        return height[group]

    return {name: of(whole[name]) for name in between}


if __name__ == "__main__":
    files = modules(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "src")
    edges = imports(files)
    between = arrows(edges)
    for name, floor in sorted(floors(between).items(), key=lambda item: (-item[1], item[0])):
        inside = [path for module, path in files.items() if room(module) == name]
        lines = sum(len(path.read_text().splitlines()) for path in inside)
        print(f"floor {floor:2}  {name:12} {len(inside):3} files {lines:6} lines  imports {' '.join(sorted(between[name]))}")
    circles, of_files = components(between), components(edges)
    print(
        f"{len(between)} rooms, {max(floors(between).values())} floors, {sum(map(len, between.values()))} arrows, "
        f"{len(circles)} circles of rooms, {len(of_files)} of files; {len(files)} files, "
        f"{sum(len(path.read_text().splitlines()) for path in files.values())} lines"
    )
    for circle in of_files:
        print("circle:", " ".join(circle))
