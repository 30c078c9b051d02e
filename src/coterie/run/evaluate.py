"""What a recipe's experts and mixtures are worth: its evaluations, who is used where, and the summary of all figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coterie.evaluation.choices import Asked, evaluate_choices
from coterie.evaluation.evaluation_files import tables
from coterie.evaluation.leaks import check_leaks
from coterie.evaluation.losses import TokenLosses, evaluate_losses
from coterie.evaluation.metrics import Choices, Losses
from coterie.evaluation.questions import read_questions
from coterie.mixtures.load import load
from coterie.progress import say
from coterie.recipe.places import Mixture
from coterie.run import places as assembly
from coterie.run import publish as outcome
from coterie.shares import gini, mutual_information
from coterie.store import Artifact

if TYPE_CHECKING:
    from coterie.run.conductor import Conductor


class Measured:
    """The evaluations of one recipe."""

    def __init__(self, conductor: Conductor, out: Path) -> None:
        self.c, self.recipe, self.out = conductor, conductor.recipe, out
        self.notes: list[str] = []
        """What was left out, and why; for people."""
        self.tables: dict[str, dict[str, Any]] = {}
        """By evaluation: ``evaluation``, ``differences``, ``sources``."""

    def all(self) -> None:
        """Make every evaluation of the recipe."""
        for spec in self.recipe.evaluation:
            artifact, models = self.losses(spec) if isinstance(spec, Losses) else self.choices(spec)
            if not artifact.planned:
                corpora = spec.corpora if isinstance(spec, Losses) else ()
                self.tables[spec.name] = tables(artifact, models, corpora)

    # losses -------------------------------------------------------------------------------------------------------------

    def tested(self, spec: Losses) -> dict[str, Artifact]:
        """The blocks that an evaluation scores, by corpus."""
        return {name: self.c.blocks(name, spec.split, tokens=spec.tokens) for name in spec.corpora}

    def mixture_scores(self, mixture: Mixture, blocks: Artifact) -> Artifact:
        return assembly.of(mixture).scores(self.c, mixture, blocks)

    def usable(self, mixture: Mixture, undated: Iterable[str], what: str) -> bool:
        """Whether a mixture can be evaluated here: by its rule it may need dates."""
        missing = sorted(undated) if mixture.needs_date else []
        if missing:
            note = f"{mixture.name} needs a date, and {what} {', '.join(missing)} has none: not evaluated there"
            if note not in self.notes:
                self.notes.append(note)
                say(f"  {note}")
        return not missing

    @cached_property
    def trained_on(self) -> list[tuple[Artifact, Artifact]]:
        """The training blocks behind every expert, the base and `single`, and the documents they were cut from."""
        pretrain = self.recipe.base.pretrain
        used = [(self.c.blocks(name, "train"), name) for name in (pretrain.corpora if pretrain else ())]
        trained = [e for e in self.recipe.experts if not e.finished]
        used += [(self.c.blocks(e.corpus, "train", e.window, e.where), e.corpus) for e in trained]
        used += [
            (self.c.blocks(n, "train"), n)
            for m in self.recipe.mixtures
            for n in getattr(getattr(m, "joint", None), "corpora", ())
        ]
        return list({b.digest: (b, self.c.documents(name)) for b, name in used}.values())

    @cached_property
    def leaks(self) -> Artifact | None:
        """Everything that is scored against everything that was trained on."""
        tested = {
            b.digest: (b, self.c.documents(name))
            for spec in self.recipe.evaluation
            if isinstance(spec, Losses)
            for name, b in self.tested(spec).items()
        }
        asked = [read_questions(spec) for spec in self.recipe.evaluation if isinstance(spec, Choices)]
        if not tested and not asked:
            return None
        return check_leaks(self.c.store, evaluated=list(tested.values()), trained=self.trained_on, questions=asked)

    def losses(self, spec: Losses) -> tuple[Artifact, list[str]]:
        """The evaluation, and the names of its models in order."""
        tested = self.tested(spec)
        scored = {
            name: {k: TokenLosses.of(artifact, self.c.scores(name, b)) for k, b in tested.items()}
            for name, artifact in self.c.experts.items()
        }
        undated = [name for name in spec.corpora if self.recipe.corpora[name].time is None]
        for mixture in self.recipe.mixtures:
            if self.usable(mixture, undated, "corpus"):
                artifact = self.c.mixtures[mixture.name]
                scored[mixture.name] = {
                    k: TokenLosses.of(artifact, self.mixture_scores(mixture, b)) for k, b in tested.items()
                }
        if self.c.single is not None:
            scored["single"] = {k: TokenLosses.of(self.c.single, self.c.scores("single", b)) for k, b in tested.items()}
        artifact = evaluate_losses(
            self.c.store,
            spec=spec,
            corpora=tested,
            models=scored,
            experts=list(self.c.experts),
            against=["single"] if self.c.single is not None else [],
            leaks=self.leaks,
            seed=self.recipe.seed,
            label=f"evaluation {spec.name}",
        )
        return artifact, list(scored)

    # choices ------------------------------------------------------------------------------------------------------------

    def choices(self, spec: Choices) -> tuple[Artifact, list[str]]:
        """The evaluation, and the names of its models in order. Models are opened from OUT, where they were just put."""
        models = {name: self._asked(artifact, self.out / "experts" / name) for name, artifact in self.c.experts.items()}
        for mixture in self.recipe.mixtures:
            if self.usable(mixture, [] if spec.time else [spec.name], "evaluation"):
                artifact = self.c.mixtures[mixture.name]
                models[mixture.name] = self._asked(artifact, self.out / "mixtures" / mixture.name)
        if self.c.single is not None:
            models["single"] = self._asked(self.c.single, self.out / "single")
        artifact = evaluate_choices(
            self.c.store,
            spec=spec,
            questions=read_questions(spec),
            models=models,
            experts=list(self.c.experts),
            against=["single"] if self.c.single is not None else [],
            seed=self.recipe.seed,
            label=f"evaluation {spec.name}",
        )
        return artifact, list(models)

    def _asked(self, artifact: Artifact, folder: Path) -> Asked:
        def opened() -> tuple[Any, Any]:
            model = load(folder)
            return model, model.tokenizer

        return Asked(artifact.digest, opened)

    # routing ------------------------------------------------------------------------------------------------------------

    def routing(self) -> dict[str, dict[str, Any]]:
        """Who is used where, for each mixture, over the documents of the first evaluation of losses."""
        spec = next((e for e in self.recipe.evaluation if isinstance(e, Losses)), None)
        if spec is None:
            return {}
        found = {}
        undated = [name for name in spec.corpora if self.recipe.corpora[name].time is None]
        for mixture in self.recipe.mixtures:
            if mixture.needs_date and undated:
                continue
            facts = {name: self.mixture_scores(mixture, b).facts for name, b in self.tested(spec).items()}
            answered = {name: f for name, f in facts.items() if f["tokens"]}
            if answered:
                names = assembly.of(mixture).experts(self.c, mixture)
                self._note_equal_slots(mixture)
                found[mixture.name] = {"experts": names, **usage(answered), **self._gates(names, answered)}
        return found

    def _note_equal_slots(self, mixture: Mixture) -> None:
        counts = Counter(digest for _, digest in assembly.of(mixture).seats(self.c, mixture))
        first = {digest: name for name, digest in reversed(assembly.of(mixture).seats(self.c, mixture))}
        if several := [f"{first[digest]} ({count} slots)" for digest, count in counts.items() if count > 1]:
            self.notes.append(f"{mixture.name}: slots of one expert cannot be told apart: {', '.join(several)}")

    def _gates(self, experts: list[str], facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """Of mixtures with gates inside: their use ``by_layer``, and ``gate_accuracy``: the share of a domain's held-out
        tokens at which the largest weight is on an expert that learned this domain, mean over layers."""
        facts = {name: f for name, f in facts.items() if "chosen" in f}
        own = {
            name: [u for u, e in enumerate(experts) if e in self.c.by_name and self.c.by_name[e].corpus == name]
            for name in facts
        }
        if not facts:
            return {}
        right = {name: sum(facts[name]["chosen"][u] for u in mine) for name, mine in own.items() if mine}
        return {"by_layer": {name: f["by_layer"] for name, f in facts.items()}, "gate_accuracy": right}


def usage(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of routing over several domains, from those of each.

    Returns:
        ``utilization`` (mean weight of each distinct expert), its ``gini``, mean ``entropy`` (nats) and ``confidence`` (mean
        largest weight), ``by_group``, ``by_position``, ``mutual_information`` of domain and expert (nats).
    """
    tokens_G = np.array([f["tokens"] for f in facts.values()], dtype=float)
    share_G = tokens_G / tokens_G.sum()
    use_GU = np.array([f["utilization"] for f in facts.values()])
    use_U = share_G @ use_GU
    joint_GU = share_G[:, None] * use_GU
    return {
        "utilization": use_U.tolist(),
        "gini": gini(use_U),
        "entropy": float(share_G @ [f["entropy"] for f in facts.values()]),
        "confidence": float(share_G @ [f["confidence"] for f in facts.values()]),
        "mutual_information": mutual_information(joint_GU),
        "by_group": {name: f["utilization"] for name, f in facts.items()},
        # by domain: over all of them, later positions belong to the domains with long documents
        "by_position": {name: f["by_position"] for name, f in facts.items()},
    }


def summarise(c: Conductor, measured: Measured, stage: int) -> dict[str, Any]:
    """``summary.json``: every figure with its source."""
    experts: dict[str, Any] = {}
    for name, artifact in c.experts.items():
        if artifact.digest in experts:
            experts[artifact.digest].setdefault("also", []).append(name)
        else:
            expert = c.by_name[name]
            experts[artifact.digest] = outcome.expert_entry(name, expert, artifact, expert.corpus)
            if stage >= 2 and (curve := c.test_curve(name)):
                experts[artifact.digest]["test_curve"] = curve
    pretrain = c.recipe.base.pretrain
    tables = measured.tables
    summary: dict[str, Any] = {
        "schema": 1,
        "name": c.recipe.name,
        "seed": c.recipe.seed,
        "recipe_hash": c.recipe.hash,
        "slots": {
            m.name: [{"slot": i, "name": s, "expert": d} for i, (s, d) in enumerate(assembly.of(m).seats(c, m))]
            for m in c.recipe.mixtures
        },
        "reuse": c.reuse(),
        "experts": experts,
        "evaluation": {name: t["evaluation"] for name, t in tables.items()},
        "differences": {name: t["differences"] for name, t in tables.items()},
        "sources": {name: t["sources"] for name, t in tables.items()},
        "routing": measured.routing() if stage >= 2 else {},
        **({"leaks": measured.leaks.facts} if stage >= 2 and measured.leaks else {}),
        "corpora": {name: c.documents(name).facts for name in c.used_corpora},
        "notes": measured.notes,
        "versions": {name: version(name) for name in ("coterie", "torch", "transformers", "tokenizers")},
    }
    if pretrain:
        corpora = " + ".join(pretrain.corpora)
        summary["base"] = {"digest": c.base.digest, **outcome.expert_entry("base", None, c.base, corpora)}
    if stage >= 2 and c.single is not None:
        corpora = " + ".join(c.trained_corpora)
        summary["single"] = {"digest": c.single.digest, **outcome.expert_entry("single", None, c.single, corpora)}
    if stage >= 1:
        summary["mixtures"] = {name: artifact.digest for name, artifact in c.mixtures.items()}
    return summary
