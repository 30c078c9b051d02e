"""What a report is made from: OUT/summary.json, the curves in OUT/metrics.jsonl and the steps in OUT/plan.json.

Beside the contract's keys (`schema`, `name`, `slots`, `experts`, `evaluation`, `routing`) a report shows these when they are
there, and leaves out what is not:

- ``recipe_hash``, ``seed``, ``versions`` ``{PACKAGE: VERSION}``, ``notes`` ``[TEXT]``,
- ``reuse`` ``{"requested", "distinct", "trained", "reused"}``: experts,
- ``experts[HASH]`` further: ``kind``, ``corpus``, ``from``, ``parameters``, ``curve``, ``valid_curve`` and ``test_curve``
  ``[[tokens, loss], ...]``; ``base`` and ``single`` likewise, with ``digest``,
- ``evaluation[EVAL][MODEL][GROUP]`` further: ``documents`` and ``skipped`` (left out because the model cannot answer), and
  for references ``expert``, its name,
- ``differences[EVAL]``, ``sources[EVAL]``: as `coterie.evaluation.tables` gives them,
- ``leaks`` ``{"evaluated", "trained", "exact", "near", "named": {"exact": [{"id"}], "near": [{"id", "share", "like"}]}}``
  (the facts of `check_leaks`),
- ``routing[MIXTURE]`` further: ``experts`` (names, in the order of ``utilization``), ``by_group`` ``{GROUP: [weights]}``,
  ``by_position`` ``{GROUP: [weights at each position]}``, ``mutual_information``, ``gate_accuracy`` ``{GROUP: share}``,
  ``by_layer`` ``{GROUP: [[weights] of each layer]}``.

- ``foresight[EVAL][MODEL]``: share of what is evaluated whose future a model knows; see `coterie.run.foresight`,
- ``measures[EVAL]``: what its figures are, where they are neither nll nor accuracy; see `coterie.report.measure`.

A line of metrics.jsonl is ``{"expert": HASH, "base" or "single", "tokens", "loss" or "eval_loss", ...}``; it is needed only
for those without ``curve``.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path

from coterie.errors import RequestError
from coterie.spec.json_file import read_json
from coterie.spec.json_types import Figures
from coterie.store.whole import require_whole

Summary = Figures


def read(out: Path) -> Summary:
    """The summary of a finished run, with a curve for everything that was trained.

    Raises:
        RequestError: there is no summary, or it is not one.
    """
    out = Path(out)
    path, plan, metrics = (out / name for name in ("summary.json", "plan.json", "metrics.jsonl"))
    if not path.exists():
        raise RequestError(
            "there is no finished run here",
            where=str(path),
            expected="the folder given to `coterie run --out`",
            found="no such file",
            do="run the recipe first, or name its output folder",
        )
    for file in (path, plan, metrics):
        require_whole(file)
    summary = read_json(path)
    if summary.get("schema") != 1:
        raise RequestError(
            "this is no summary of a run that this version can show",
            where=str(path),
            expected='"schema": 1',
            found=f'"schema": {summary.get("schema")!r}',
        )
    if plan.is_file():
        summary["plan"] = read_json(plan)["steps"]
    curves = _curves(metrics)
    for key, trained in trained_models(summary).items():
        for kind in ("curve", "valid_curve"):
            trained[kind] = _finite(trained.get(kind) or curves[key, kind])
    return summary


def trained_models(summary: Summary) -> dict[str, Figures]:
    """Everything that has a record of its training, by hash, or `base` or `single`; the records of the summary itself."""
    others = {k: summary[k] for k in ("base", "single") if summary.get(k)}
    for key, record in others.items():
        record.setdefault("name", key)
    return {**others, **summary.get("experts", {})}


def _curves(path: Path) -> dict[tuple[str, str], list[list[float]]]:
    curves: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line) if line.strip() else {}
            for key, kind in (("loss", "curve"), ("eval_loss", "valid_curve")):
                if row.get(key) is not None and row.get("tokens") is not None:
                    curves[str(row.get("expert")), kind].append([row["tokens"], row[key]])
    return curves


def _finite(curve: list[list[float]]) -> list[list[float]]:
    return [[t, y] for t, y in curve if math.isfinite(t) and math.isfinite(y)]
