"""Places on charts. The template draws; here is only arithmetic, in the units of the drawing (a viewBox)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coterie.report import figures

COLOURS = 8
"""Colours there are; more lines than this share grey until one is pointed at."""
_POINTS = 160
"""Points kept of a curve; between them is the mean."""
_SAME = 1e-3
"""Weights that differ by less are the same to the eye."""


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


WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 10, 34


def curves(models: Sequence[dict[str, Any]]) -> Curves | None:
    """Training and held-out loss of everything that has a curve; None if nothing has."""
    shown = [m for m in models if len(m.get("curve") or ()) > 1]
    if not shown:
        return None
    lines = [
        Line(
            m.get("name", "?"),
            i if len(shown) <= COLOURS else None,
            thinned(m["curve"]),
            [(float(t), float(v)) for t, v in m.get("valid_curve") or ()],
            figures.nats(m.get("loss") if m.get("loss") is not None else m["curve"][-1][1]),
        )
        for i, m in enumerate(shown)
    ]
    xs = [t for line in lines for t, _ in (*line.points, *line.valid)]
    ys = [v for line in lines for _, v in (*line.points, *line.valid)]
    x, y = (0.0, max(xs)), _padded(min(ys), max(ys))
    paths = ["M" + "L".join(f"{_x(t, x):.1f} {_y(v, y):.1f}" for t, v in line.points) for line in lines]
    x_ticks = [(round(_x(t, x), 1), figures.count(t)) for t in figures.ticks(*x)]
    y_ticks = [(round(_y(v, y), 1), f"{v:g}") for v in figures.ticks(*y)]
    return Curves(lines, paths, x, y, x_ticks, y_ticks)


@dataclass(frozen=True)
class Band:
    name: str
    colour: int
    path: str
    mean: str


@dataclass(frozen=True)
class Bands:
    """Weights over position: one band for each expert, stacked, so that together they are 1."""

    bands: list[Band]
    x_ticks: list[tuple[float, str]]


def bands(names: Sequence[str], weight_TU: Sequence[Sequence[float]]) -> Bands | None:
    """Stack the weights; with more experts than colours the least used ones are one band. None if position is nothing to
    the router."""
    rows = [list(map(float, row)) for row in weight_TU]
    if max((max(column) - min(column) for column in zip(*rows, strict=True)), default=0) < _SAME:
        return None
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    order = sorted(range(len(names)), key=lambda u: -mean[u])
    kept = order if len(names) <= COLOURS else order[: COLOURS - 1]
    rest = [u for u in order if u not in kept]
    columns = [(names[u], [row[u] for row in rows]) for u in kept]
    if rest:
        columns.append((f"{len(rest)} others", [sum(row[u] for u in rest) for row in rows]))
    x = (0.0, float(len(rows) - 1))
    below = [0.0] * len(rows)
    out = []
    for i, (name, values) in enumerate(columns):
        above = [b + v for b, v in zip(below, values, strict=True)]
        upper = [f"{_x(t, x):.1f} {_y(v, (0, 1)):.1f}" for t, v in _every(above)]
        lower = [f"{_x(t, x):.1f} {_y(v, (0, 1)):.1f}" for t, v in reversed(_every(below))]
        out.append(Band(name, i, "M" + "L".join(upper + lower) + "Z", f"{sum(values) / len(values):.2f}"))
        below = above
    return Bands(out, [(round(_x(t, x), 1), f"{t:g}") for t in figures.ticks(*x)])


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


def _x(value: float, span: tuple[float, float]) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (value - span[0]) / ((span[1] - span[0]) or 1)


def _y(value: float, span: tuple[float, float]) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - span[0]) / ((span[1] - span[0]) or 1)
