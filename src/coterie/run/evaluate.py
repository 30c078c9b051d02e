"""What a recipe's experts and mixtures are worth: its evaluations, what of them was trained on, and who is used where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import RequestError
from coterie.evaluation.compare import Tables, tables
from coterie.evaluation.leaks import check_leaks
from coterie.experts.expert_actions import score_expert
from coterie.mixtures.place import Place
from coterie.models.device import Precision
from coterie.models.weight_precision import torch_dtype
from coterie.progress import say
from coterie.run.foresight import foresight
from coterie.run.parts import Parts
from coterie.run.usage import usage
from coterie.spec.json_types import Figures
from coterie.store import Artifact, Store

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Evaluations:
    """The evaluations of one recipe; what a metric sees of a run (`coterie.evaluation.metrics.Evaluating`).

    Args:
        out: where experts and mixtures have been put; models that answer questions are opened from there.
    """

    def __init__(self, parts: Parts, out: Path) -> None:
        self.parts, self.recipe, self.out = parts, parts.recipe, out
        self.store: Store = parts.store
        self.seed = parts.seed
        self.notes: list[str] = []
        """What was left out, and why; for people."""
        self.tables: dict[str, Tables] = {}
        """By evaluation."""

    @property
    def goals(self) -> dict[str, Callable[[str], Artifact | None]]:
        """How every kind of goal is asked for; see `Parts.goals`."""
        return {**self.parts.goals, "evaluation": self.one}

    def one(self, name: str) -> Artifact:
        """Make an evaluation of the recipe, and keep its tables."""
        metric = next(m for m in self.recipe.evaluation if m.name == name)
        made = metric.evaluate(self)
        if not made.artifact.planned:
            self.tables[name] = tables(made.artifact, made.models, made.corpora, key=metric.measure.key)
            if missing := metric.left_out(self):
                self.notes.append(f"{name} leaves out {missing}")
                say(f"  {self.notes[-1]}")
        return made.artifact

    def look(self) -> None:
        """Read what is to be evaluated, so that what is wrong with it is found before anything is trained."""
        for metric in self.recipe.evaluation:
            metric.tested(self)
            metric.questions()

    # what metrics ask for -------------------------------------------------------------------------------------------------

    @property
    def precision(self) -> Precision:
        return self.parts.precision

    @property
    def experts(self) -> Mapping[str, Artifact]:
        return self.parts.experts

    @property
    def references(self) -> Sequence[str]:
        return [] if self.parts.single is None else ["single"]

    def models(self, undated: Sequence[str], what: str, *, base: bool = False) -> dict[str, Artifact]:
        found = {"base": self.parts.base} if base else {}
        found |= dict(self.parts.experts)
        found |= {m.name: self.parts.made(m) for m in self.recipe.mixtures if self._usable(m, undated, what)}
        return found | ({"single": self.parts.single} if self.parts.single is not None else {})

    def _usable(self, mixture: Place, undated: Sequence[str], what: str) -> bool:
        """Whether a mixture can be evaluated here: by its rule it may need dates."""
        missing = sorted(undated) if mixture.needs_date else []
        if missing:
            note = f"{mixture.name} needs a date, and {what} {', '.join(missing)} has none: not evaluated there"
            if note not in self.notes:
                self.notes.append(note)
                say(f"  {note}")
        return not missing

    def has_dates(self, corpus: str) -> bool:
        return self.recipe.corpora[corpus].time is not None

    def documents(self, corpus: str) -> Artifact:
        return self.parts.documents(corpus)

    def blocks(self, corpus: str, split: str, *, tokens: int | None = None) -> Artifact:
        return self.parts.blocks(corpus, split, tokens=tokens)

    def scores(self, model: str, blocks: Artifact) -> Artifact:
        parts, label = self.parts, self.parts.scores_label(model, blocks)
        if model in parts.by_name:
            expert, base = parts.experts[model], parts.rests_on(model)
            return score_expert(self.store, expert, blocks, base=base, precision=parts.precision, label=label)
        if model in ("base", "single"):
            whole = parts.base if model == "base" else parts.single
            assert whole is not None
            return score_expert(self.store, whole, blocks, precision=parts.precision, label=label)
        return parts.mixture(model).scores(parts, blocks)

    def opener(self, model: str) -> Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]:
        folder = self.out / "experts" / model if model in self.parts.by_name else self.out / "mixtures" / model
        folder = self.out / model if model == "single" else self.parts.base.path if model == "base" else folder

        def opened() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
            from coterie.mixtures.load import load

            mixture = load(folder, dtype=torch_dtype(self.precision))
            assert mixture.tokenizer is not None, folder
            return mixture, mixture.tokenizer

        return opened

    @cached_property
    def leaks(self) -> Artifact | None:
        """Everything that is scored against everything that was trained on."""
        parts = self.parts
        tested = {
            b.digest: (b, parts.documents(corpus))
            for metric in self.recipe.evaluation
            for corpus, b in metric.tested(self).items()
        }
        questions = [q for metric in self.recipe.evaluation if (q := metric.questions()) is not None]
        if not tested and not questions:
            return None
        pretrain = self.recipe.base.pretrain
        trained = [(parts.blocks(name, "train"), name) for name in (pretrain.corpora if pretrain else ())]
        trained += [(parts.data(e.name, "train"), e.corpus) for e in self.recipe.experts if not e.finished]
        trained += [(parts.blocks(name, "train"), name) for m in self.recipe.mixtures for name in m.own_corpora]
        distinct = {b.digest: (b, parts.documents(name)) for b, name in trained}
        return check_leaks(self.store, evaluated=list(tested.values()), trained=list(distinct.values()), questions=questions)

    def test_curve(self, expert: str) -> list[list[float]]:
        """Tokens seen and held-out loss (test split of the expert's own slice) of each of its snapshots, and at the end."""
        spec, made = self.parts.by_name[expert], self.parts.experts[expert]
        if spec.train.snapshots is None or spec.finished:
            return []
        try:
            blocks, base = self.parts.data(expert, "test"), self.parts.rests_on(expert)
        except RequestError as error:  # the expert is trained and the rest is measured: that is worth a summary
            self.notes.append(f"the snapshots of {expert} are not evaluated: {error.what} (test split of its own slice)")
            say(f"  {self.notes[-1]}")
            return []
        by_digest = {artifact.digest: artifact for artifact in self.store.used.values()}
        points = [(entry["tokens"], by_digest[entry["digest"]]) for entry in made.facts["snapshots"]]
        points.append((made.facts["tokens"], made))
        curve = []
        for tokens, snapshot in points:
            label = self.parts.scores_label(f"{expert} at {tokens:,} tokens", blocks)
            precision = self.parts.precision
            scored = score_expert(self.store, snapshot, blocks, base=base, precision=precision, label=label)
            curve.append([tokens, scored.facts["nll"]])
        return curve

    def foresight(self) -> dict[str, dict[str, float]]:
        """By evaluation and model, the share of what it asks whose future the model knows; `coterie.run.foresight`."""
        made = {
            m.name: foresight(self.parts, m.weight_by_day(self)) for m in self.recipe.evaluation if m.name in self.tables
        }
        return {name: shares for name, shares in made.items() if shares}

    # routing --------------------------------------------------------------------------------------------------------------

    def routing(self) -> dict[str, Figures]:
        """Who is used where, for each mixture, over the documents of the first evaluation that scores any."""
        tested = next((t for metric in self.recipe.evaluation if (t := metric.tested(self))), None)
        if tested is None:
            return {}
        found = {}
        undated = [name for name in tested if not self.has_dates(name)]
        for mixture in self.recipe.mixtures:
            if mixture.needs_date and undated:
                continue
            facts = {name: mixture.scores(self.parts, b).facts for name, b in tested.items()}
            answered = {name: f for name, f in facts.items() if f["tokens"]}
            if answered:
                names = mixture.experts(self.parts)
                self._note_equal_slots(mixture)
                found[mixture.name] = {"experts": names, **usage(answered), **self._gates(names, answered)}
        return found

    def _note_equal_slots(self, mixture: Place) -> None:
        seats = mixture.seats(self.parts)
        counts = Counter(digest for _, digest in seats)
        first = {digest: name for name, digest in reversed(seats)}
        if several := [f"{first[digest]} ({count} slots)" for digest, count in counts.items() if count > 1]:
            self.notes.append(f"{mixture.name}: slots of one expert cannot be told apart: {', '.join(several)}")

    def _gates(self, experts: Sequence[str], facts: Mapping[str, Mapping[str, Any]]) -> Figures:
        """Of mixtures with gates inside: their use ``by_layer``, and ``gate_accuracy``: the share of a domain's held-out
        tokens at which the largest weight is on an expert that learned this domain, mean over layers."""
        facts = {name: f for name, f in facts.items() if "chosen" in f}
        if not facts:
            return {}
        by_name = self.parts.by_name
        own = {name: [u for u, e in enumerate(experts) if e in by_name and by_name[e].corpus == name] for name in facts}
        right = {name: sum(facts[name]["chosen"][u] for u in mine) for name, mine in own.items() if mine}
        return {"by_layer": {name: f["by_layer"] for name, f in facts.items()}, "gate_accuracy": right}
