"""The conductor: a recipe's plan, what the store lacks, in what order. The one file that knows all verbs.

Every method asks the store for one artifact and names it by what it depends on, so caching, reuse, resume and the dry run
are one mechanism: with a `DryStore` the same calls only find out what is missing.
"""

from __future__ import annotations

from datetime import date, timedelta
from functools import cached_property
from pathlib import Path

from coterie import corpora, experts, mixtures, models
from coterie.recipe import CheckpointBase, Expert, FreshBase, Mixture, Recipe, Window, lineage
from coterie.recipe.mixture import Uniform
from coterie.store import Artifact, Store

STAGES = ("experts", "mixtures", "evaluation")
"""How far to go: `coterie train`, `coterie mix`, `coterie evaluate` stop after one of these."""


class Conductor:
    """Everything one recipe asks for, made at most once each."""

    def __init__(self, recipe: Recipe, store: Store) -> None:
        self.recipe, self.store = recipe, store
        self.by_name = {e.name: e for e in recipe.experts}

    # corpora ------------------------------------------------------------------------------------------------------------

    def documents(self, corpus: str) -> Artifact:
        return corpora.documents(self.store, self.recipe.corpora[corpus], label=f"corpus {corpus}")

    @cached_property
    def trained_corpora(self) -> list[str]:
        """Every corpus that something is trained on."""
        pretrain = self.recipe.base.pretrain
        return list(dict.fromkeys([*(pretrain.corpora if pretrain else ()), *(e.corpus for e in self.recipe.experts)]))

    @cached_property
    def tokenizer(self) -> Artifact:
        base = self.recipe.base
        if isinstance(base, CheckpointBase):
            return corpora.tokenizer(self.store, str(self.start.path), [], label="the base's tokenizer")
        spec = base.tokenizer
        names = [] if isinstance(spec, str) else list(spec.corpora or self.trained_corpora)
        return corpora.tokenizer(self.store, spec, [self.documents(n) for n in names], label="tokenizer")

    def blocks(
        self,
        corpus: str,
        split: str,
        window: Window | None = None,
        where: dict | None = None,
        tokens: int | None = None,
    ) -> Artifact:
        limit = self.recipe.corpora[corpus].limit
        return corpora.blocks(
            self.store,
            self.documents(corpus),
            self.tokenizer,
            split=split,
            length=self.recipe.sequence_length,
            window=window,
            where=where or None,
            limit_tokens=limit.tokens if limit else None,
            most_tokens=tokens,
            label=f"{split} tokens of {corpus}" + (f" [{window.start}, {window.end})" if window else ""),
        )

    # experts ------------------------------------------------------------------------------------------------------------

    @cached_property
    def start(self) -> Artifact:
        """Fresh weights, or the checkpoint."""
        base = self.recipe.base
        if isinstance(base, CheckpointBase):
            return models.checkpoint(base.path, base.revision)
        return self._fresh(base)

    def _fresh(self, base: FreshBase) -> Artifact:
        seed = self.recipe.seed if base.seed is None else base.seed
        length = self.recipe.sequence_length
        return models.initialise(self.store, base, self.tokenizer, seed=seed, sequence_length=length, label="fresh weights")

    @cached_property
    def base(self) -> Artifact:
        """What experts branch from."""
        pretrain = self.recipe.base.pretrain
        if pretrain is None:
            return self.start
        return experts.train(
            self.store,
            start=self.start,
            blocks=[self.blocks(name, "train") for name in pretrain.corpora],
            weights=list(pretrain.corpora.values()),
            valid=None,
            kind="full",
            train=pretrain.train.model_copy(update={"tokens": pretrain.tokens, "epochs": None}),
            lora=None,
            seed=self.recipe.seed,
            label="base",
        )

    def expert(self, name: str) -> Artifact:
        expert = self.by_name[name]
        stops_early = expert.train.early_stopping is not None
        data = (expert.corpus, expert.window, expert.where)
        return experts.train(
            self.store,
            start=self.origin(expert),
            blocks=[self._slice("train", *data)],
            weights=None,
            valid=self._slice("valid", *data) if stops_early else None,
            kind=expert.kind,
            train=expert.train,
            lora=expert.lora,
            seed=self.recipe.seed if expert.seed is None else expert.seed,
            label=f"expert {name}",
        )

    def _slice(self, split: str, corpus: str, window: Window | None, where: dict) -> Artifact:
        return self.blocks(corpus, split, window, where)

    def origin(self, expert: Expert) -> Artifact:
        """The weights an expert branches from."""
        if expert.from_ == "base":
            return self.base
        if expert.from_ == "fresh":
            if isinstance(self.recipe.base, FreshBase):
                return self._fresh(self.recipe.base)
            return models.reinitialise(self.store, self.start, seed=self.recipe.seed, label="fresh weights")
        return self.expert(expert.from_)

    @cached_property
    def experts(self) -> dict[str, Artifact]:
        """Every expert, each distinct one trained once; the log says how many that were."""
        return {e.name: self.expert(e.name) for e in self.recipe.experts}

    @cached_property
    def single(self) -> Artifact | None:
        """One model from the same start on the same data in the same shares, with as many tokens as all the rest."""
        if self.recipe.single is None:
            return None
        spent: dict[str, tuple[Artifact, float]] = {}
        pretrain = self.recipe.base.pretrain
        if pretrain:
            total = sum(pretrain.corpora.values())
            for name, weight in pretrain.corpora.items():
                _add(spent, self.blocks(name, "train"), pretrain.tokens * weight / total)
        for name in self.distinct.values():
            expert = self.by_name[name]
            _add(spent, self._slice("train", expert.corpus, expert.window, expert.where), self._tokens(expert))
        tokens = round(sum(t for _, t in spent.values()))
        return experts.train(
            self.store,
            start=self.start,
            blocks=[blocks for blocks, _ in spent.values()],
            weights=[t for _, t in spent.values()],
            valid=None,
            kind="full",
            train=self.recipe.single.train.model_copy(update={"tokens": tokens, "epochs": None}),
            lora=None,
            seed=self.recipe.seed,
            label="single model",
        )

    def _tokens(self, expert: Expert) -> float:
        if expert.train.tokens is not None and expert.train.early_stopping is None:
            return expert.train.tokens
        artifact = self.experts[expert.name]
        return 1 if artifact.planned else artifact.facts["tokens"]

    @cached_property
    def distinct(self) -> dict[str, str]:
        """Digest of each distinct expert, and the first name it goes by."""
        names: dict[str, str] = {}
        for name, artifact in self.experts.items():
            names.setdefault(artifact.digest, name)
        return names

    def knowledge(self, name: str) -> date | None:
        """The first day after all text behind an expert; None if unknown."""
        behind = lineage(self.recipe, self.recipe.experts, name)
        if behind.unknown:
            return None
        dates = list(behind.dates)
        for corpus in behind.corpora:
            documents = self.documents(corpus)
            if documents.planned or documents.facts["latest"] is None:
                return None
            dates.append(date.fromisoformat(documents.facts["latest"]) + timedelta(days=1))
        return max(dates, default=date.min)

    # mixtures -----------------------------------------------------------------------------------------------------------

    def members(self, mixture: Mixture) -> list[mixtures.Member]:
        """The distinct experts of a mixture with the number of their slots, in order of first use."""
        found: dict[str, mixtures.Member] = {}
        for slot in mixture.slots:
            artifact = self.experts[slot]
            if artifact.digest in found:
                found[artifact.digest].slots.append(slot)
                continue
            expert = self.by_name[slot]
            found[artifact.digest] = mixtures.Member(
                name=slot,
                artifact=artifact,
                base=self.origin(expert) if expert.kind == "lora" else None,
                window=expert.window,
                knowledge=self.knowledge(slot) if mixture.eligible == "strict" else None,
                slots=[slot],
            )
        return list(found.values())

    def scores(self, name: str, blocks: Artifact) -> Artifact:
        """Log-probabilities of one expert (or `single`) on a set of blocks."""
        if name == "single":
            assert self.single is not None
            return experts.score(self.store, self.single, blocks, label="scores of single")
        expert = self.by_name[name]
        base = self.origin(expert) if expert.kind == "lora" else None
        return experts.score(self.store, self.experts[name], blocks, base=base, label=f"scores of {name}")

    def router(self, mixture: Mixture) -> Artifact | None:
        """The fitted router; None where nothing is learned."""
        if isinstance(mixture.router, Uniform):
            return None
        members = self.members(mixture)
        data = dict.fromkeys((e.corpus, e.window) for e in (self.by_name[s] for s in mixture.slots))
        blocks = [self.blocks(corpus, "valid", window) for corpus, window in data]
        return mixtures.fit_router(
            self.store,
            mixture=mixture,
            members=members,
            blocks=blocks,
            scores=[[self.scores(m.name, b) for m in members] for b in blocks],
            tokenizer=self.tokenizer,
            seed=self.recipe.seed,
            label=f"router of {mixture.name}",
        )

    def mixture(self, mixture: Mixture) -> Artifact:
        return mixtures.assemble(
            self.store,
            mixture=mixture,
            members=self.members(mixture),
            router=self.router(mixture),
            tokenizer=self.tokenizer,
            label=f"mixture {mixture.name}",
        )

    @cached_property
    def mixtures(self) -> dict[str, Artifact]:
        return {m.name: self.mixture(m) for m in self.recipe.mixtures}


def _add(spent: dict[str, tuple[Artifact, float]], blocks: Artifact, tokens: float) -> None:
    before = spent.get(blocks.digest, (blocks, 0.0))[1]
    spent[blocks.digest] = (blocks, before + tokens)


class Measured:
    """The evaluations of one recipe: what each expert, mixture and reference is worth, by group."""

    def __init__(self, conductor: Conductor) -> None:
        self.c = conductor
        self.notes: list[str] = []
        """What was left out, and why; for people."""

    @property
    def recipe(self) -> Recipe:
        return self.c.recipe

    def tested(self, spec: Losses) -> dict[str, Artifact]:
        """The blocks that an evaluation scores, by corpus."""
        return {name: self.c.blocks(name, spec.split, tokens=spec.tokens) for name in spec.corpora}

    def mixture_scores(self, mixture: Mixture, blocks: Artifact) -> Artifact:
        """A mixture's log-probabilities from its experts' cached ones: no expert runs."""
        members = self.c.members(mixture)
        return mixtures.routed(
            self.c.store,
            self.c.mixtures[mixture.name],
            blocks,
            [self.c.scores(m.name, blocks) for m in members],
            label=f"scores of {mixture.name}",
        )

    def usable(self, mixture: Mixture, corpora: Iterable[str]) -> bool:
        """Whether a mixture can be evaluated on documents of these corpora: dates are needed by its rule."""
        if mixture.eligible == "all" or mixture.default_time is not None:
            return True
        undated = [name for name in corpora if self.recipe.corpora[name].time is None]
        if undated:
            note = f"{mixture.name} needs a date, and documents of {', '.join(undated)} have none: not evaluated there"
            if note not in self.notes:
                self.notes.append(note)
                say(f"  {note}")
        return not undated

    @cached_property
    def trained_on(self) -> list[Artifact]:
        """The training blocks behind every expert, the base and `single`."""
        pretrain = self.recipe.base.pretrain
        used = [self.c.blocks(name, "train") for name in pretrain.corpora] if pretrain else []
        used += [self.c.blocks(e.corpus, "train", e.window, e.where) for e in self.recipe.experts]
        return list({b.digest: b for b in used}.values())

    def losses(self, spec: Losses) -> tuple[Artifact, list[str]]:
        """The evaluation, and the names of its models in order."""
        tested = self.tested(spec)
        scored: dict[str, dict[str, evaluation.Scored]] = {}
        for name, artifact in self.c.experts.items():
            scored[name] = {k: evaluation.Scored.of(artifact, self.c.scores(name, b)) for k, b in tested.items()}
        for mixture in self.recipe.mixtures:
            if self.usable(mixture, spec.corpora):
                artifact = self.c.mixtures[mixture.name]
                scored[mixture.name] = {
                    k: evaluation.Scored.of(artifact, self.mixture_scores(mixture, b)) for k, b in tested.items()
                }
        if self.c.single is not None:
            scored["single"] = {
                k: evaluation.Scored.of(self.c.single, self.c.scores("single", b)) for k, b in tested.items()
            }
        leaks = evaluation.check_leaks(
            self.c.store, list(tested.values()), self.trained_on, label=f"leak check of {spec.name}"
        )
        artifact = evaluation.evaluate_losses(
            self.c.store,
            spec=spec,
            corpora=tested,
            models=scored,
            experts=list(self.c.experts),
            against=["single"] if self.c.single is not None else [],
            leaks=leaks,
            seed=self.recipe.seed,
            label=f"evaluation {spec.name}",
        )
        return artifact, list(scored)
