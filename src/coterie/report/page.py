"""One HTML page that needs nothing else: styles, script and drawings are inside, and no address is asked for anything."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from coterie.report import charts, figures, tables
from coterie.report.read import Summary, read, trained_models


@dataclass(frozen=True)
class Routing:
    """Who is used where, in one mixture."""

    name: str
    experts: list[str]
    slots: dict[str, int]
    """Slots of each expert, where more than one."""
    heat: list[tuple[str, list[float]]]
    """Mean weights in each group, then over all."""
    figures: list[tuple[str, str, str]]
    """(name, value, what it means)."""
    bands: charts.Bands | None


def write_report(out: str | Path) -> Path:
    """Write OUT/report.html from OUT/summary.json.

    Raises:
        RequestError: OUT holds no summary.
    """
    path = Path(out) / "report.html"
    temp = path.with_name(f".report.{os.getpid()}.html")
    temp.write_text(render(read(Path(out))), encoding="utf-8")
    temp.replace(path)
    return path


def render(summary: Summary) -> str:
    """The page, from what `read` gives."""
    here = files("coterie.report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: here.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({f.__name__: f for f in (figures.nats, figures.count, figures.seconds)})
    trained = list(trained_models(summary).items())
    return environment.get_template("report.html").render(
        summary=summary,
        headlines=headlines(summary),
        evaluations=tables.evaluation_tables(summary),
        differences=tables.difference_tables(summary),
        curves=charts.curves([m for _, m in trained]),
        box=charts,
        routing=[_routing(summary, name, figures_) for name, figures_ in summary.get("routing", {}).items() if figures_],
        trained=trained,
        columns=[c for c in ("kind", "corpus", "from", "parameters", "tokens", "seconds", "loss") if any(c in m for _, m in trained)],
        css=here.joinpath("report.css").read_text(encoding="utf-8"),
        js=here.joinpath("report.js").read_text(encoding="utf-8"),
    )


def headlines(summary: Summary) -> list[str]:
    """For each evaluation of losses, where the best mixture stands against its references, in one sentence."""
    out = []
    kind_of = tables.kinds(summary)
    for table in tables.evaluation_tables(summary):
        rows = {r.name: r.cells[0] for r in table.rows if r.cells[0].value is not None}
        best = next((n for n in rows if kind_of.get(n) == "mixture"), None)
        if table.kind != "losses" or best is None:
            continue
        text = f"{table.name}: the best mixture, {best}, loses {rows[best].text} nats a token"
        if "best_expert" in rows:
            text += f", the best expert, {rows['best_expert'].note}, {rows['best_expert'].text}"
        if "single" in rows:
            text += f", one single model {rows['single'].text}"
        out.append(text + ".")
    return out


def _routing(summary: Summary, name: str, use: dict[str, Any]) -> Routing:
    slots: dict[str, int] = {}
    names_by_hash: dict[str, str] = {}
    for slot in summary.get("slots", {}).get(name, []):
        first = names_by_hash.setdefault(slot["expert"], slot["name"])
        slots[first] = slots.get(first, 0) + 1
    mean = use.get("utilization", [])
    experts = use.get("experts") or (list(slots) if len(slots) == len(mean) else [f"expert {i + 1}" for i in range(len(mean))])
    heat = [(g, list(w)) for g, w in use.get("by_group", {}).items()]
    said = [
        ("gini", "how unevenly experts are used: 0 all alike, near 1 all on one"),
        ("entropy", f"nats of doubt a token: 0 sure, {figures.nats(_log(len(mean)))} even among all"),
        ("confidence", "mean of the largest weight"),
        ("mutual_information", "nats that the group says about the expert: 0 none"),
    ]
    return Routing(
        name,
        experts,
        {n: c for n, c in slots.items() if c > 1},
        [*heat, *([("all", list(mean))] if mean else [])],
        [(k.replace("_", " "), figures.nats(use[k]), text) for k, text in said if use.get(k) is not None],
        charts.bands(experts, use.get("by_position") or []),
    )


def _log(count: int) -> float:
    from math import log

    return log(max(count, 1))
