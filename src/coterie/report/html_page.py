"""One HTML page that needs nothing else: styles, script and drawings are inside, and no address is asked for anything."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import log
from pathlib import Path

from coterie.report import charts, figures, tables
from coterie.report.measure import NLL
from coterie.report.page_template import template
from coterie.report.read_summary import Summary, read, trained_models
from coterie.spec.json_types import Figures

COLUMNS = ("kind", "corpus", "from", "parameters", "tokens", "seconds", "loss")
"""Of the table of what was trained."""
OPTIONAL = ("name", "seed", "recipe_hash", "reuse", "versions", "notes", "leaks", "slots", "experts", "sources", "plan")
"""Parts of a summary that the template asks for."""


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
    bands: tuple[list[str], list[charts.Bands]]
    """Names, and weights over position in each group."""


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
    page = Path(__file__).with_name("report.html")
    trained = list(trained_models(summary).items())
    return template(page, figures.nats, figures.count, figures.seconds).render(
        summary={**dict.fromkeys(OPTIONAL), **summary},
        headlines=headlines(summary),
        evaluations=tables.evaluation_tables(summary),
        differences=tables.difference_tables(summary),
        labels={step["key"]: step["label"] for step in summary.get("plan", ())},
        curves=charts.curves([m for _, m in sorted(trained, key=lambda t: t[0] in ("base", "single"))]),
        wide=charts.WIDE,
        small=charts.SMALL,
        routing=[_routing(summary, name, figures_) for name, figures_ in summary.get("routing", {}).items() if figures_],
        trained=trained,
        columns=[c for c in COLUMNS if any(c in m for _, m in trained)],
        css=page.with_suffix(".css").read_text(encoding="utf-8"),
        js=page.with_suffix(".js").read_text(encoding="utf-8"),
    )


@dataclass(frozen=True)
class Headline:
    """Where the best mixture of one evaluation stands: (what, nats a token over all groups, its name)."""

    evaluation: str
    figures: list[tuple[str, str, str]]


def headlines(summary: Summary) -> list[Headline]:
    """One for each evaluation of losses with a mixture that does not know the future."""
    out = []
    for table in tables.evaluation_tables(summary):
        rows = [r for r in table.rows if r.cells[0].value is not None and not r.foresight]
        wanted = {"best mixture": "mixture", "best expert": "best_expert", "single model": "single", "oracle": "oracle"}
        found = {what: next((r for r in rows if who in (r.name, r.kind)), None) for what, who in wanted.items()}
        if table.measure == NLL and found["best mixture"]:
            named = ((what, r, r.name if r.kind == "mixture" else r.detail) for what, r in found.items() if r)
            out.append(Headline(table.name, [(what, r.cells[0].text, name) for what, r, name in named]))
    return out


def _routing(summary: Summary, name: str, use: Figures) -> Routing:
    slots: dict[str, int] = {}
    names_by_hash: dict[str, str] = {}
    for slot in summary.get("slots", {}).get(name, []):
        first = names_by_hash.setdefault(slot["expert"], slot["name"])
        slots[first] = slots.get(first, 0) + 1
    mean = use.get("utilization", [])
    experts = use.get("experts") or list(slots)
    if len(experts) != len(mean):
        experts = [f"expert {i + 1}" for i in range(len(mean))]
    heat = [(g, list(w)) for g, w in use.get("by_group", {}).items()]
    meanings = [
        ("gini", "how unevenly experts are used: 0 all alike, near 1 all on one"),
        ("entropy", f"nats of doubt a token: 0 sure, {figures.nats(log(max(len(mean), 1)))} even among all"),
        ("confidence", "mean of the largest weight"),
        ("mutual_information", "nats that the group says about the expert: 0 none"),
    ]
    right = "share of held-out tokens whose largest weight is on an expert of this domain, mean over layers"
    return Routing(
        name,
        experts,
        {n: c for n, c in slots.items() if c > 1},
        [*heat, *([("all", list(mean))] if mean else [])],
        [(k.replace("_", " "), figures.nats(use[k]), text) for k, text in meanings if use.get(k) is not None]
        + [(f"gate accuracy, {g}", f"{a:.0%}", right) for g, a in use.get("gate_accuracy", {}).items()],
        charts.bands(experts, use.get("by_position", {})),
    )
