"""The conductor: a recipe's plan, what the store lacks, in what order. The one file that knows all verbs.

Every method asks the store for one artifact and names it by what it depends on, so caching, reuse, resume and the dry run
are one mechanism: with a `DryStore` the same calls only find out what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import date, timedelta
from functools import cached_property

import polars as pl

from coterie.corpora.blocks import pack_blocks
from coterie.corpora.documents import read_corpus
from coterie.corpora.splits import split_tokens
from coterie.corpora.tokenizer import make_tokenizer
from coterie.corpora.windows import Window
from coterie.errors import RequestError
from coterie.experts.adopt import adopt, adopt_model
from coterie.experts.expert_actions import score_expert, train_expert
from coterie.experts.expert_settings import Expert
from coterie.models.checkpoint import checkpoint
from coterie.models.initialise import initialise, reinitialise
from coterie.recipe import Recipe
from coterie.recipe.base import CheckpointBase, FreshBase
from coterie.recipe.lineage import lineage
from coterie.recipe.places import Mixture
from coterie.run import places as assembly
from coterie.select.corpus import Corpus
from coterie.store import Artifact, Store


class Conductor:
    """Everything one recipe asks for, made at most once each."""

    def __init__(self, recipe: Recipe, store: Store) -> None:
        self.recipe, self.store = recipe, store
        self.by_name = {e.name: e for e in recipe.experts}
        self.names = [*(["base"] if recipe.base.pretrain else []), *self.by_name]

    # corpora ------------------------------------------------------------------------------------------------------------

    def corpus(self, corpus: str) -> Corpus:
        """With the columns that experts and evaluations ask for."""
        spec = self.recipe.corpora[corpus]
        asked = [column for e in self.recipe.experts if e.corpus == corpus for column in e.where]
        asked += [e.by for e in self.recipe.evaluation if corpus in getattr(e, "corpora", ()) and e.by not in (None, "year")]
        return spec.model_copy(update={"columns": tuple(dict.fromkeys([*spec.columns, *asked]))})

    def documents(self, corpus: str) -> Artifact:
        spec = self.corpus(corpus)
        if spec.select is None:
            return read_corpus(self.store, spec, label=corpus)
        from coterie.select.chosen_corpus import selected_documents  # brings scikit-learn with it

        return selected_documents(self.store, spec, label=corpus)

    @cached_property
    def trained_corpora(self) -> list[str]:
        """Every corpus that something is trained on."""
        pretrain = self.recipe.base.pretrain
        joint = [name for m in self.recipe.mixtures for name in getattr(getattr(m, "joint", None), "corpora", ())]
        learned = [e.corpus for e in self.recipe.experts if not e.finished]
        return list(dict.fromkeys([*(pretrain.corpora if pretrain else ()), *learned, *joint]))

    @cached_property
    def used_corpora(self) -> list[str]:
        """Every corpus that is read."""
        tested = [name for e in self.recipe.evaluation for name in getattr(e, "corpora", ())]
        learned = getattr(getattr(self.recipe.base, "tokenizer", None), "corpora", None) or ()
        return list(dict.fromkeys([*self.trained_corpora, *learned, *tested]))

    @cached_property
    def tokenizer(self) -> Artifact:
        base = self.recipe.base
        if isinstance(base, CheckpointBase):
            return make_tokenizer(self.store, str(self.start.path), [], label="the base's tokenizer")
        spec = base.tokenizer
        names = [] if isinstance(spec, str) else list(spec.corpora or self.trained_corpora)
        return make_tokenizer(self.store, spec, [self.documents(n) for n in names], label="tokenizer")

    def blocks(
        self, corpus: str, split: str, window: Window | None = None, where: dict | None = None, tokens: int | None = None
    ) -> Artifact:
        limits = [n for n in (split_tokens(self.recipe.corpora[corpus], split), tokens) if n is not None]
        return pack_blocks(
            self.store,
            self.documents(corpus),
            self.tokenizer,
            split=split,
            length=self.recipe.sequence_length,
            window=window,
            where=where or None,
            limit_tokens=min(limits, default=None),
            label=f"{split} tokens of {corpus}" + (f" [{window.start}, {window.end})" if window else ""),
        )

    # experts ------------------------------------------------------------------------------------------------------------

    @cached_property
    def start(self) -> Artifact:
        """Fresh weights, or the checkpoint."""
        base = self.recipe.base
        if isinstance(base, CheckpointBase):
            found = checkpoint(base.path, base.revision)
            config = json.loads(found.file("config.json").read_text())
            context = config.get("max_position_embeddings") or config.get("n_positions")
            if context and context < self.recipe.sequence_length:
                raise RequestError(
                    "the checkpoint reads shorter sequences than the recipe asks for",
                    where="sequence_length",
                    expected=f"at most {context}",
                    found=str(self.recipe.sequence_length),
                    do="lower sequence_length",
                )
            return found
        return self._fresh(base)

    def _fresh(self, base: FreshBase) -> Artifact:
        seed = self.recipe.seed if base.seed is None else base.seed
        length = self.recipe.sequence_length
        return initialise(self.store, base, self.tokenizer, seed=seed, sequence_length=length, label="fresh weights")

    @cached_property
    def base(self) -> Artifact:
        """What experts branch from."""
        pretrain = self.recipe.base.pretrain
        if pretrain is None:
            return self.start
        return train_expert(
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
        if expert.adapter is not None:
            return adopt(self.store, expert.adapter, self.origin(expert), label=f"expert {name}")
        if expert.model is not None:
            return adopt_model(self.store, expert.model, kind=expert.kind, label=f"expert {name}")
        goes_on = expert.kind == "lora" and expert.from_ in self.by_name and self.by_name[expert.from_].kind == "lora"
        stops_early = expert.train.early_stopping is not None
        corpus, window, where = _data(expert)
        return train_expert(
            self.store,
            start=self.expert(expert.from_) if goes_on else self.origin(expert),
            base=self.origin(expert) if goes_on else None,
            blocks=[self.blocks(corpus, "train", window, where)],
            weights=None,
            valid=self.blocks(corpus, "valid", window, where) if stops_early else None,
            kind=expert.kind,
            train=expert.train,
            lora=expert.lora,
            seed=self.recipe.seed if expert.seed is None else expert.seed,
            label=f"expert {name}",
        )

    def origin(self, expert: Expert) -> Artifact:
        """The weights an expert branches from; of an adapter that goes on from another, what both rest on."""
        parent = self.by_name.get(expert.from_)
        if parent is not None and parent.kind == expert.kind == "lora":
            return self.origin(parent)
        if expert.from_ == "base":
            return self.base
        if expert.from_ == "fresh":
            if isinstance(self.recipe.base, FreshBase):
                return self._fresh(self.recipe.base)
            return reinitialise(self.store, self.start, seed=self.recipe.seed, label="fresh weights")
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
            corpus, window, where = _data(expert)
            _add(spent, self.blocks(corpus, "train", window, where), self._tokens(expert))
        tokens = round(sum(t for _, t in spent.values()))
        return train_expert(
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

    def reuse(self) -> dict[str, int]:
        """Experts requested, distinct, trained and reused."""
        trained = sum(not self.experts[name].reused for name in self.distinct.values())
        requested = max(len(self.recipe.experts), *(len(m.slots) for m in self.recipe.mixtures), 0)
        return {
            "requested": requested,
            "distinct": len(self.distinct),
            "trained": trained,
            "reused": len(self.distinct) - trained,
        }

    def knowledge(self, name: str) -> date | None:
        """The first day after all text behind an expert; None if unknown."""
        behind = lineage(self.recipe, self.recipe.experts, name)
        if behind.unknown:
            return None
        dates = list(behind.dates)
        for corpus in behind.corpora:
            documents = self.documents(corpus)
            if documents.planned:
                return None
            latest = pl.read_parquet(documents.file("documents.parquet"), columns=["time"])["time"].max()
            assert isinstance(latest, date)
            dates.append(latest + timedelta(days=1))
        return max(dates, default=date.min)

    # mixtures -----------------------------------------------------------------------------------------------------------

    def scores(self, name: str, blocks: Artifact) -> Artifact:
        """Log-probabilities of one expert (or `single`) on a set of blocks."""
        if name == "single":
            assert self.single is not None
            return score_expert(self.store, self.single, blocks, label="scores of single")
        expert = self.by_name[name]
        base = self.origin(expert) if expert.kind == "lora" else None
        return score_expert(self.store, self.experts[name], blocks, base=base, label=f"scores of {name}")

    def test_curve(self, name: str) -> list[list[float]]:
        """Tokens seen and held-out loss (test split of the expert's own slice) of each of its snapshots, and at the end."""
        expert = self.by_name[name]
        if expert.train.snapshots is None or expert.finished:
            return []
        blocks = self.blocks(expert.corpus, "test", expert.window, expert.where)
        base = self.origin(expert) if expert.kind == "lora" else None
        made = self.experts[name]
        by_digest = {artifact.digest: artifact for artifact in self.store.used.values()}
        points = [(entry["tokens"], by_digest[entry["digest"]]) for entry in made.facts["snapshots"]]
        points.append((made.facts["tokens"], made))
        label = f"scores of snapshots of {name}"
        return [
            [tokens, score_expert(self.store, artifact, blocks, base=base, label=label).facts["nll"]]
            for tokens, artifact in points
        ]

    def data_of(self, slots: Iterable[str]) -> list[tuple[str, Window | None, dict]]:
        """What the experts of these slots learned from, each once."""
        learned = [self.by_name[s] for s in dict.fromkeys(slots)]
        return list({e.model_dump_json(include={"corpus", "window", "where"}): _data(e) for e in learned}.values())

    def mixture(self, mixture: Mixture) -> Artifact:
        return assembly.of(mixture).make(self, mixture)

    @cached_property
    def mixtures(self) -> dict[str, Artifact]:
        return {m.name: self.mixture(m) for m in self.recipe.mixtures}


def _data(expert: Expert) -> tuple[str, Window | None, dict]:
    """What an expert learns from."""
    return expert.corpus, expert.window, expert.where


def _add(spent: dict[str, tuple[Artifact, float]], blocks: Artifact, tokens: float) -> None:
    before = spent.get(blocks.digest, (blocks, 0.0))[1]
    spent[blocks.digest] = (blocks, before + tokens)
