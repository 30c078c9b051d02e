"""What a run leaves behind: `summary.json`, `metrics.jsonl`, `recipe.json`, the report, experts and mixtures that open."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie import report
from coterie.corpora.tokenizer_settings import TrainedTokenizer
from coterie.experts.expert_settings import Expert
from coterie.progress import say
from coterie.recipe import Recipe
from coterie.recipe.base import FreshBase
from coterie.run import places as assembly
from coterie.store import Artifact, link_tree
from coterie.store.durable import replace_synced

if TYPE_CHECKING:
    from coterie.run.conductor import Conductor


class Models(Mapping[str, Any]):
    """Experts or mixtures by name; each is loaded when first asked for."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = dict(folders)
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
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
    summary: dict[str, Any] = field(default_factory=dict)
    """What `summary.json` holds; empty for a plan."""
    plan: list[tuple[str, str, str, int | None]] = field(default_factory=list)
    """(kind, what, `cached` or `make`, tokens) of a dry run."""
    experts: Models = field(default_factory=lambda: Models({}))
    mixtures: Models = field(default_factory=lambda: Models({}))


def expert_entry(name: str, expert: Expert | None, artifact: Artifact, corpus: str) -> dict[str, Any]:
    """One line of `summary.json`'s experts. ``expert`` is None for base and single."""
    facts = artifact.facts
    curve, valid = [], []
    for row in metrics_of(artifact):
        if row.get("loss") is not None:
            curve.append([row["tokens"], row["loss"]])
        if row.get("eval_loss") is not None:
            valid.append([row["tokens"], row["eval_loss"]])
    return {
        "name": name,
        "trained": not artifact.reused and facts["tokens"] > 0,
        "tokens": facts["tokens"],
        "seconds": artifact.made.get("seconds"),
        "loss": facts["loss"],
        "kind": facts["kind"],
        "corpus": corpus,
        "parameters": facts["parameters"],
        "trained_parameters": facts["trained_parameters"],
        "seed": facts.get("seed"),
        **({"from": expert.from_} if expert else {}),
        **({"window": expert.window.model_dump(mode="json")} if expert and expert.window else {}),
        "curve": curve,
        **({"valid_curve": valid} if valid else {}),
    }


def metrics_of(artifact: Artifact) -> list[dict[str, Any]]:
    """The logged steps of a training run."""
    path = artifact.file("metrics.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Places:
    """Where a run's results are put. Experts and mixtures are links into the store and cost no space."""

    def __init__(self, out: Path, conductor: Conductor) -> None:
        self.out, self.c = out, conductor

    def experts(self, names: Iterable[str]) -> None:
        """Experts by name, and the base where `base` is among them."""
        for name in names:
            if name == "base":
                link_tree(self.c.base, self.out / "base")
                continue
            expert = self.c.by_name[name]
            parts = {"base": self.c.origin(expert)} if expert.kind == "lora" else {}
            link_tree(self.c.expert(name), self.out / "experts" / name, parts=parts)

    def mixtures(self) -> None:
        for mixture in self.c.recipe.mixtures:
            assembly.of(mixture).put(self.c, mixture, self.out / "mixtures" / mixture.name)

    def single(self) -> None:
        if self.c.single is not None:
            link_tree(self.c.single, self.out / "single")

    def opened(self, kind: str) -> Models:
        names = self.c.by_name if kind == "experts" else [m.name for m in self.c.recipe.mixtures]
        return Models({name: self.out / kind / name for name in names if (self.out / kind / name).is_dir()})

    def write(self, summary: Mapping[str, Any], *, report_too: bool) -> None:
        """`recipe.json`, `metrics.jsonl`, `summary.json` and the report; each appears whole."""
        c = self.c
        trained = {artifact.digest: artifact for artifact in c.experts.values()}
        if c.recipe.base.pretrain:
            trained["base"] = c.base
        if "single" in summary and c.single is not None:
            trained["single"] = c.single
        lines = [json.dumps({"expert": key, **row}) for key, artifact in trained.items() for row in metrics_of(artifact)]
        self._file("metrics.jsonl", "".join(line + "\n" for line in lines))
        self._file("recipe.json", c.recipe.model_dump_json(by_alias=True, indent=2) + "\n")
        self._file("summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
        if report_too:
            report.write_report(self.out)

    def _file(self, name: str, text: str) -> None:
        replace_synced(self.out / name, text.encode(), self.out)


def show_plan(recipe: Recipe, plan: list[tuple[str, str, str, int | None]]) -> None:
    """Print what a run would do."""
    width = max(len(what) for _, what, _, _ in plan)
    for kind, what, state, tokens in plan:
        cost = f"{tokens:>14,} tokens" if tokens and state == "make" else ""
        print(f"{state:<7} {kind:<12} {what:<{width}} {cost}".rstrip())
    missing = [tokens for _, _, state, tokens in plan if state == "make"]
    training = sum(t for (kind, _, state, t) in plan if kind in ("experts", "routers", "mixtures") and state == "make" and t)
    print(
        f"{recipe.name}: {len(plan) - len(missing)} cached, {len(missing)} to make; "
        f"{training:,} tokens to train on" + (f", {_estimate(recipe, training)}" if training else "")
    )


def _estimate(recipe: Recipe, tokens: int) -> str:
    """A rough cost: 6 floating-point operations for each parameter and token."""
    base = recipe.base
    if not isinstance(base, FreshBase):
        return "size of the checkpoint not counted"
    wide = base.intermediate_size or (4 if base.init == "gpt2" else 8 / 3) * base.hidden_size
    block = 4 * base.hidden_size**2 + (2 if base.init == "gpt2" else 3) * base.hidden_size * wide
    vocabulary = base.tokenizer.vocab_size if isinstance(base.tokenizer, TrainedTokenizer) else 32_000
    parameters = base.layers * block + vocabulary * base.hidden_size
    return f"about {6 * parameters * tokens / 1e12:,.1f} TFLOP"


def show(summary: dict[str, Any], out: Path) -> None:
    """End with the tables, and where to find the rest."""
    if summary["evaluation"]:
        print(report.terminal(summary))
    leaks = summary.get("leaks", {"exact": 0, "near": 0})
    if leaks["exact"]:
        say(f"  {leaks['exact']} documents to evaluate were trained on and are left out (see the report)")
    if leaks["near"]:
        say(f"  {leaks['near']} evaluated documents share half their text with training documents (see the report)")
    where = out / "report.html"
    print(f"{'report' if where.exists() else 'results'}: {where if where.exists() else out}")
