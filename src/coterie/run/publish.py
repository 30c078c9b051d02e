"""What a run leaves behind: `summary.json`, `metrics.jsonl`, `recipe.json`, the report, experts and mixtures that open."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.progress import say
from coterie.recipe import Recipe
from coterie.report import terminal, write_report
from coterie.run.parts import Parts
from coterie.run.plan import Goal, Plan
from coterie.run.summary import logged_steps
from coterie.spec.json_types import Figures
from coterie.store import Artifact, link_tree
from coterie.store.durable import replace_synced
from coterie.store.whole import break_seal, write_seal

if TYPE_CHECKING:
    from coterie.mixtures.mixture import Mixture


class Models(Mapping[str, "Mixture"]):
    """Experts or mixtures by name; each is loaded when first asked for."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)
        self._loaded: dict[str, Mixture] = {}

    def __getitem__(self, name: str) -> Mixture:
        if name not in self._loaded:
            from coterie.mixtures.load import load

            self._loaded[name] = load(self.folders[name])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.folders)

    def __len__(self) -> int:
        return len(self.folders)


@dataclass
class Run:
    """A finished run, or the plan of one."""

    recipe: Recipe
    out: Path
    plan: Plan
    """What was asked for, what of it was there, and what it needed."""
    summary: Figures = field(default_factory=dict)
    """What `summary.json` holds; empty for a plan."""
    experts: Models = field(default_factory=lambda: Models({}))
    mixtures: Models = field(default_factory=lambda: Models({}))


class Results:
    """Where a run's results are put. Experts and mixtures are links into the store and cost no space."""

    def __init__(self, out: Path, parts: Parts) -> None:
        self.out, self.parts = out, parts

    def put(self, goal: Goal, made: Artifact) -> None:
        """Experts and mixtures under their names, `base` and `single` beside them."""
        parts, name = self.parts, goal.name
        break_seal(self.out)
        if goal.kind == "expert":
            base = parts.rests_on(name)
            link_tree(made, self.out / "experts" / name, parts={"base": base} if base is not None else {})
        elif goal.kind == "mixture":
            parts.mixture(name).put(parts, self.out / "mixtures" / name)
        elif goal.kind != "evaluation":
            link_tree(made, self.out / name)

    def opened(self, kind: str) -> Models:
        names = self.parts.by_name if kind == "experts" else [m.name for m in self.parts.recipe.mixtures]
        return Models({name: self.out / kind / name for name in names if (self.out / kind / name).is_dir()})

    def write(self, summary: Figures, plan: Plan, *, report: bool) -> None:
        """`recipe.json`, `plan.json`, `metrics.jsonl`, `summary.json` and the report; each appears whole."""
        parts = self.parts
        trained = {artifact.digest: artifact for artifact in parts.experts.values()}
        if parts.recipe.base.pretrain:
            trained["base"] = parts.base
        if "single" in summary and parts.single is not None:
            trained["single"] = parts.single
        lines = [json.dumps({"expert": key, **row}) for key, artifact in trained.items() for row in logged_steps(artifact)]
        self._file("metrics.jsonl", "".join(line + "\n" for line in lines))
        recipe = _from_here(json.loads(parts.recipe.model_dump_json(by_alias=True)), self.out.absolute())
        self._file("recipe.json", json.dumps(recipe, indent=2, ensure_ascii=False) + "\n")
        self._file("plan.json", plan.json())
        self._file("summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
        write_seal(self.out)
        if report:
            write_report(self.out)

    def _file(self, name: str, text: str) -> None:
        replace_synced(self.out / name, text.encode(), self.out)


def _from_here(value: object, out: Path) -> object:
    """Settings with their paths as seen from OUT, where `recipe.json` lies: results that are shared name nobody's home."""
    if isinstance(value, dict):
        return {key: _from_here(child, out) for key, child in value.items()}
    if isinstance(value, list):
        return [_from_here(child, out) for child in value]
    if isinstance(value, str) and os.path.isabs(value) and (glob.has_magic(value) or os.path.exists(value)):
        with suppress(ValueError):  # on another drive
            return os.path.relpath(value, out)
    return value


def show(summary: Figures, out: Path) -> None:
    """End with the tables, and where to find the rest."""
    counts = summary["reuse"]
    elsewhere = f", {counts['finished']} made elsewhere" if "finished" in counts else ""
    made = "{requested} requested, {distinct} distinct, {trained} trained, {reused} reused".format(**counts)
    say(f"  experts: {made}{elsewhere}")
    if summary["evaluation"]:
        print(terminal(summary))
    leaks = summary.get("leaks", {"exact": 0, "near": 0})
    if leaks["exact"]:
        say(f"  {leaks['exact']} documents to evaluate were trained on and are left out (see the report)")
    if leaks["near"]:
        say(f"  {leaks['near']} evaluated documents share half their text with training documents (see the report)")
    where = out / "report.html"
    print(f"{'report' if where.exists() else 'results'}: {where if where.exists() else out}")
