"""Places on charts. The template draws; here is only arithmetic, in the units of the drawing (a viewBox)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from coterie.report import figures
from coterie.spec.json_types import Figures

COLOURS = 8
"""Colours there are; more lines than this share grey until one is pointed at."""
_POINTS = 160
"""Points kept of a curve; between them is the mean."""
_SAME = 1e-3
"""Weights that differ by less are the same to the eye."""


class Box(NamedTuple):
    """The drawing and its margins."""

    width: int
    height: int
    left: int = 44
    right: int = 12
    top: int = 10
    bottom: int = 46


WIDE, SMALL = Box(720, 310), Box(320, 200, left=24, bottom=40)


@dataclass(frozen=True)
class Line:
    name: str
    colour: int | None
    points: list[tuple[float, float]]
    """What is drawn, for the values shown while pointing."""
    valid: list[tuple[float, float]]
    last: str


@dataclass(frozen=True)
class Curves:
    """Loss over tokens. Points are placed by the page's script, which can change the scale; the path here is linear."""

    lines: list[Line]
    paths: list[str]
    x: tuple[float, float]
    y: tuple[float, float]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def curves(models: Sequence[Figures]) -> Curves | None:
    """Training and held-out loss of everything that has a curve; None if nothing has."""
    shown = [m for m in models if len(m.get("curve") or ()) > 1]
    if not shown:
        return None
    lines = [
        Line(
            m.get("name", "?"),
            i if len(shown) <= COLOURS else None,
            thinned(m["curve"]),
            [(float(t), float(v)) for t, v in m.get("test_curve") or m.get("valid_curve") or ()],
            figures.nats(m.get("loss") if m.get("loss") is not None else m["curve"][-1][1]),
        )
        for i, m in enumerate(shown)
    ]
    xs = [t for line in lines for t, _ in (*line.points, *line.valid)]
    ys = [v for line in lines for _, v in (*line.points, *line.valid)]
    x, y = (0.0, max(xs)), _padded(min(ys), max(ys))
    paths = ["M" + "L".join(f"{_x(t, x, WIDE):.1f} {_y(v, y, WIDE):.1f}" for t, v in line.points) for line in lines]
    x_ticks = [(round(_x(t, x, WIDE), 1), figures.count(t)) for t in figures.ticks(*x)]
    y_ticks = [(round(_y(v, y, WIDE), 1), f"{v:g}") for v in figures.ticks(*y)]
    return Curves(lines, paths, x, y, x_ticks, y_ticks)


@dataclass(frozen=True)
class Bands:
    """Weights over position in one group: a band for each expert, stacked, so that together they are 1."""

    group: str
    paths: list[str]
    x_ticks: list[tuple[float, str]]


def bands(names: Sequence[str], by_group: Mapping[str, Sequence[Sequence[float]]]) -> tuple[list[str], list[Bands]]:
    """Stack the weights, in one order for all groups: the names of the bands, and the bands of each group. With more experts
    than colours the least used ones are one band. Nothing if position is nothing to the router."""
    if not any(_moves(rows) for rows in by_group.values()):
        return [], []
    everything = [row for rows in by_group.values() for row in rows]
    total = [sum(column) for column in zip(*everything, strict=True)]
    most_used = sorted(range(len(names)), key=lambda u: -total[u])
    kept = sorted(most_used[: COLOURS - (len(names) > COLOURS)])
    rest = [u for u in most_used if u not in kept]
    labels = [names[u] for u in kept] + ([f"{len(rest)} others"] if rest else [])
    made = []
    for group, rows in by_group.items():
        if len(rows) > 1:
            values = [[[row[u] for u in us] for row in rows] for us in [*([u] for u in kept), *([rest] if rest else [])]]
            made.append(_stacked(group, [[sum(v) for v in column] for column in values]))
    return labels, made


def _moves(rows: Sequence[Sequence[float]]) -> bool:
    return max((max(column) - min(column) for column in zip(*rows, strict=True)), default=0) >= _SAME


def _stacked(group: str, columns: list[list[float]]) -> Bands:
    x = (0.0, float(len(columns[0]) - 1))
    below = [0.0] * len(columns[0])
    paths = []
    for values in columns:
        above = [b + v for b, v in zip(below, values, strict=True)]
        edge = [*_every(above), *reversed(_every(below))]
        paths.append("M" + "L".join(f"{_x(t, x, SMALL):.1f} {_y(v, (0, 1), SMALL):.1f}" for t, v in edge) + "Z")
        below = above
    return Bands(group, paths, [(round(_x(t, x, SMALL), 1), f"{t:g}") for t in figures.ticks(*x, 4)])


def thinned(curve: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """At most `_POINTS` points: means of equal runs."""
    size = -(-len(curve) // _POINTS)
    runs = [curve[i : i + size] for i in range(0, len(curve), size)]
    return [(sum(t for t, _ in r) / len(r), round(sum(v for _, v in r) / len(r), 4)) for r in runs]


def _every(values: Sequence[float]) -> list[tuple[float, float]]:
    step = -(-len(values) // _POINTS)
    places = [*range(0, len(values) - 1, step), len(values) - 1]
    return [(float(t), values[t]) for t in places]


def _padded(low: float, high: float) -> tuple[float, float]:
    pad = (high - low) * 0.05 or 0.5
    return low - pad, high + pad


def _x(value: float, span: tuple[float, float], box: Box) -> float:
    return box.left + (box.width - box.left - box.right) * (value - span[0]) / ((span[1] - span[0]) or 1)


def _y(value: float, span: tuple[float, float], box: Box) -> float:
    return box.height - box.bottom - (box.height - box.top - box.bottom) * (value - span[0]) / ((span[1] - span[0]) or 1)
