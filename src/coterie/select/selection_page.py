"""The report of a selection as one HTML page that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coterie.report.page_template import template
from coterie.spec.json_types import Figures

_WIDTH, _HEIGHT = 420, 130


def page(report: Figures) -> str:
    """Render what ``report`` gives."""
    return template(Path(__file__).with_name("page.html"), _figure, _count).render(
        r=report,
        heat=_heat(report),
        bars=_bars(report),
        histograms={k: _histogram(v) for k, v in report["distributions"].items()},
        width=_WIDTH,
        height=_HEIGHT,
    )


def _figure(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _count(value)
    return f"{value:.3g}".replace("-", "−") if abs(value) < 1000 else _count(value)


def _count(value: float) -> str:
    return f"{value:,.0f}".replace("-", "−")


def _heat(report: Figures) -> Figures | None:
    """The table of the first two axes: what is taken of each cell, shaded by its share of the selection."""
    axes = list(report["axes"])
    if len(axes) < 2:
        return None
    sums: dict[tuple[str, str], list[float]] = {}
    for cell in report["cells"]:
        entry = sums.setdefault((cell["cell"][0], cell["cell"][1]), [0.0, 0.0])
        entry[0] += cell["selected"]
        entry[1] += cell["capacity"]
    rows, columns = (sorted({key[i] for key in sums}) for i in (0, 1))
    top = max((s for s, _ in sums.values()), default=1.0) or 1.0
    terms = {c["name"]: ", ".join(c["terms"][:3]) for c in (report["clusters"] or {"clusters": []})["clusters"]}
    shaded = {key: (s, c, round(s / top, 3)) for key, (s, c) in sums.items()}
    lines = [(row, terms.get(row, ""), [shaded.get((row, c)) for c in columns]) for row in rows]
    return {"axes": axes[:2], "columns": columns, "rows": lines}


def _histogram(data: Figures) -> Figures:
    """Two outlines on one scale."""
    top = max([*data["pool"], *data["selected"], 1e-9])
    n = len(data["pool"])

    def path(values: list[float]) -> str:
        points = [f"M0 {_HEIGHT}"]
        for i, v in enumerate(values):
            y = _HEIGHT - (_HEIGHT - 8) * v / top
            points.append(f"L{_WIDTH * i / n:.1f} {y:.1f}L{_WIDTH * (i + 1) / n:.1f} {y:.1f}")
        return "".join(points) + f"L{_WIDTH} {_HEIGHT}Z"

    return {name: path(data[name]) for name in ("pool", "selected")} | {"low": data["edges"][0], "high": data["edges"][-1]}


def _bars(report: Figures) -> list[tuple[str, int, float]]:
    """The funnel: name, documents, share of what was read."""
    funnel = report["funnel"]
    total = max(funnel["read"], 1)
    steps = [("read", funnel["read"])]
    steps += [(f"filtered: {why}", n) for why, n in funnel["filtered_why"].items()]
    steps += [("quarantined", funnel["quarantined"])] if funnel["quarantined"] else []
    steps += [(name, entry["documents"]) for name, entry in funnel["dropped"].items()]
    steps += [("to choose from", funnel["kept"]["documents"]), ("selected", funnel["selected"]["documents"])]
    return [(name, n, round(100 * n / total, 2)) for name, n in steps]
