"""The parts of a recipe, each an artifact that is asked for when it is needed: documents, blocks, experts, mixtures.

Every method asks the store for one artifact and names it by what it depends on, so caching, reuse, resume and the plan are
one mechanism: with a `DryStore` the same calls only find out what there is to do.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path

from coterie.corpora.blocks import pack_blocks
from coterie.corpora.documents import read_corpus, recognised
from coterie.corpora.splits import split_tokens
from coterie.corpora.tokenizer import make_tokenizer
from coterie.corpora.windows import Window
from coterie.errors import RequestError
from coterie.experts.expert_actions import adopt, adopt_model, score_expert, train_expert
from coterie.experts.expert_settings import Expert
from coterie.experts.training_request import Request
from coterie.mixtures.place import Place
from coterie.mixtures.seats import Seat, seated
from coterie.models import device
from coterie.models.checkpoint import checkpoint
from coterie.models.initialise import initialise, reinitialise
from coterie.models.lora_settings import Lora
from coterie.models.weight_precision import frozen_precision
from coterie.recipe import Recipe
from coterie.recipe.base import CheckpointBase, FreshBase
from coterie.recipe.lineage import Lineage, lineage
from coterie.select.select_settings import Corpus
from coterie.store import Artifact, Store


class Parts:
    """Everything one recipe asks for, made at most once each."""

    def __init__(self, recipe: Recipe, store: Store) -> None:
        self.recipe, self.store = recipe, store
        self.by_name = {e.name: e for e in recipe.experts}
        self.names = [*(["base"] if recipe.base.pretrain else []), *self.by_name]
        self._corpora: dict[str, Corpus] = {}
        self._mixtures: dict[str, Artifact] = {}
        self.text_of: dict[str, str] = {}
        """What blocks hold, by their digest: for labels."""

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @cached_property
    def precision(self) -> device.Precision:
        """In which weights that do not train are used: of everything that this run compares."""
        models = [Path(e.model).expanduser() for e in self.recipe.experts if e.model is not None]
        rests = any(e.model is None for e in self.recipe.experts) or self.recipe.base.pretrain or not self.recipe.experts
        if rests and isinstance(self.recipe.base, FreshBase):
            return "fp32" if self.recipe.precision == "auto" else self.recipe.precision
        return frozen_precision(self.recipe.precision, [*models, *([self.start.path] if rests else [])], device.pick())

    # corpora --------------------------------------------------------------------------------------------------------------

    def corpus(self, corpus: str) -> Corpus:
        """With the columns that experts and evaluations need."""
        if corpus not in self._corpora:
            self._corpora[corpus] = recognised(self.recipe.corpora[corpus], corpus, download=not self.store.dry)
        spec = self._corpora[corpus]
        needed = [column for e in self.recipe.experts if e.corpus == corpus for column in e.where]
        needed += [column for e in self.recipe.evaluation for column in e.columns_of(corpus)]
        return spec.model_copy(update={"columns": tuple(dict.fromkeys([*spec.columns, *needed]))})

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
        joint = [name for m in self.recipe.mixtures for name in m.own_corpora]
        learned = [e.corpus for e in self.recipe.experts if not e.finished]
        return list(dict.fromkeys([*(pretrain.corpora if pretrain else ()), *learned, *joint]))

    @cached_property
    def used_corpora(self) -> list[str]:
        """Every corpus that is read."""
        tested = [name for e in self.recipe.evaluation for name in e.reads]
        return list(dict.fromkeys([*self.trained_corpora, *self.recipe.base.tokenizer_corpora, *tested]))

    @cached_property
    def tokenizer(self) -> Artifact:
        base = self.recipe.base
        if isinstance(base, CheckpointBase):
            return make_tokenizer(self.store, str(self.start.path), [], label="the base's tokenizer")
        spec = base.tokenizer
        names = [] if isinstance(spec, str) else list(spec.corpora or self.trained_corpora)
        return make_tokenizer(self.store, spec, [self.documents(n) for n in names], label="tokenizer")

    def blocks(
        self,
        corpus: str,
        split: str,
        window: Window | None = None,
        where: dict[str, object] | None = None,
        tokens: int | None = None,
    ) -> Artifact:
        limits = [n for n in (split_tokens(self.recipe.corpora[corpus], split), tokens) if n is not None]
        span = f" [{window.start}, {window.end})" if window else ""
        part = "".join(f", {column} {value}" for column, value in (where or {}).items())
        label = f"{split} tokens of {corpus}{span}{part}" + (f", at most {tokens:,}" if tokens is not None else "")
        made = pack_blocks(
            self.store,
            self.documents(corpus),
            self.tokenizer,
            split=split,
            length=self.recipe.sequence_length,
            window=window,
            where=where or None,
            limit_tokens=min(limits, default=None),
            chat=self.corpus(corpus).is_chat,
            label=label,
        )
        self.text_of.setdefault(made.digest, label)
        return made

    def data(self, expert: str, split: str, tokens: int | None = None) -> Artifact:
        """Blocks of an expert's own slice."""
        spec = self.by_name[expert]
        return self.blocks(spec.corpus, split, spec.window, spec.where, tokens)

    def has_data(self, expert: str) -> bool:
        return bool(self.by_name[expert].corpus)

    def slices(self, slots: Sequence[str], split: str, tokens: int | None = None) -> list[Artifact]:
        """Blocks of the slices that the experts of these slots learned from, each once."""
        learned = [self.by_name[s] for s in dict.fromkeys(slots)]
        distinct = {e.model_dump_json(include={"corpus", "window", "where"}): e.name for e in learned}
        most = tokens and max(tokens // len(distinct), 1)
        return [self.data(name, split, most) for name in distinct.values()]

    # experts --------------------------------------------------------------------------------------------------------------

    @cached_property
    def start(self) -> Artifact:
        """Fresh weights, or the checkpoint."""
        base = self.recipe.base
        if not isinstance(base, CheckpointBase):
            return self._fresh(base)
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

    def _fresh(self, base: FreshBase) -> Artifact:
        seed = self.seed if base.seed is None else base.seed
        length = self.recipe.sequence_length
        return initialise(self.store, base, self.tokenizer, seed=seed, sequence_length=length, label="fresh weights")

    @cached_property
    def base(self) -> Artifact:
        """What experts branch from."""
        pretrain = self.recipe.base.pretrain
        if pretrain is None:
            return self.start
        return train_expert(
            Request(
                self.store,
                start=self.start,
                blocks=[self.blocks(name, "train") for name in pretrain.corpora],
                weights=list(pretrain.corpora.values()),
                train=pretrain.train.model_copy(update={"tokens": pretrain.tokens, "epochs": None}),
                seed=self.seed,
                label="base",
            )
        )

    def expert(self, name: str) -> Artifact:
        expert = self.by_name[name]
        if expert.adapter is not None:
            return adopt(self.store, expert.adapter, self.origin(name), label=f"expert {name}")
        if expert.model is not None:
            return adopt_model(self.store, expert.model, kind=expert.kind, label=f"expert {name}")
        goes_on = self._goes_on_from_adapter(expert)
        return train_expert(
            Request(
                self.store,
                start=self.expert(expert.from_) if goes_on else self.origin(name),
                base=self.origin(name) if goes_on else None,
                blocks=[self.data(name, "train")],
                valid=self.data(name, "valid") if expert.train.early_stopping is not None else None,
                kind=expert.kind,
                train=expert.train,
                lora=expert.lora,
                seed=self.seed if expert.seed is None else expert.seed,
                label=f"expert {name}",
            )
        )

    def origin(self, expert: str) -> Artifact:
        """The weights an expert branches from; of an adapter that goes on from another, what both rest on."""
        spec = self.by_name[expert]
        if self._goes_on_from_adapter(spec):
            return self.origin(spec.from_)
        if spec.from_ == "base":
            return self.base
        if spec.from_ == "fresh":
            if isinstance(self.recipe.base, FreshBase):
                return self._fresh(self.recipe.base)
            return reinitialise(self.store, self.start, seed=self.seed, label="fresh weights")
        return self.expert(spec.from_)

    def _goes_on_from_adapter(self, expert: Expert) -> bool:
        parent = self.by_name.get(expert.from_)
        return parent is not None and parent.kind == expert.kind == "lora"

    def rests_on(self, expert: str) -> Artifact | None:
        """What an adapter rests on; None for whole models."""
        return self.origin(expert) if self.by_name[expert].kind == "lora" else None

    @cached_property
    def experts(self) -> dict[str, Artifact]:
        """Every expert, each distinct one trained once."""
        return {e.name: self.expert(e.name) for e in self.recipe.experts}

    @cached_property
    def distinct(self) -> dict[str, str]:
        """Digest of each distinct expert, and the first name it goes by."""
        return {artifact.digest: name for name, artifact in reversed(self.experts.items())}

    @cached_property
    def single(self) -> Artifact | None:
        """One model from the same start on the same data in the same shares, with as many tokens as all the rest."""
        if self.recipe.single is None:
            return None
        spent: dict[str, tuple[Artifact, float]] = {}

        def spend(blocks: Artifact, tokens: float) -> None:
            spent[blocks.digest] = (blocks, spent.get(blocks.digest, (blocks, 0.0))[1] + tokens)

        pretrain = self.recipe.base.pretrain
        for name, weight in (pretrain.corpora if pretrain else {}).items():
            assert pretrain is not None
            spend(self.blocks(name, "train"), pretrain.tokens * weight / sum(pretrain.corpora.values()))
        first = dict.fromkeys(self.distinct[artifact.digest] for artifact in self.experts.values())
        for name in first:
            spend(self.data(name, "train"), self._tokens(name))
        return train_expert(
            Request(
                self.store,
                start=self.start,
                blocks=[blocks for blocks, _ in spent.values()],
                weights=[t for _, t in spent.values()],
                train=self.recipe.single.train.model_copy(
                    update={"tokens": round(sum(t for _, t in spent.values())), "epochs": None}
                ),
                seed=self.seed,
                label="single model",
            )
        )

    def _tokens(self, expert: str) -> float:
        train, artifact = self.by_name[expert].train, self.experts[expert]
        if train.tokens is not None and train.early_stopping is None:
            return train.tokens
        return 1 if artifact.planned else artifact.facts["tokens"]

    def knowledge(self, behind: Lineage) -> date | None:
        """The first day after all text of a lineage; None if unknown."""
        import polars as pl

        if behind.unknown:
            return None
        dates = list(behind.dates)
        for corpus in behind.corpora:
            documents = self.documents(corpus)
            if documents.planned:
                return None
            latest = pl.read_parquet(documents.file("documents.parquet"), columns=["time"], glob=False)["time"].max()
            assert isinstance(latest, date)
            dates.append(latest + timedelta(days=1))
        return max(dates, default=date.min)

    # mixtures -------------------------------------------------------------------------------------------------------------

    def seats(self, slots: Sequence[str], *, knowledge: bool = False) -> list[Seat]:
        """The distinct experts of some slots; see `coterie.mixtures.place.Making`."""

        def seat(name: str, names: tuple[str, ...]) -> Seat:
            expert, artifact = self.by_name[name], self.experts[name]
            return Seat(
                name=name,
                artifact=artifact,
                slots=names,
                base=self.rests_on(name),
                window=expert.window,
                knowledge=self.knowledge(lineage(self.recipe, self.recipe.experts, name)) if knowledge else None,
                targets=artifact.content("adapter_config.json") if expert.adapter else (expert.lora or Lora()).targets,
            )

        return seated(slots, self.experts, seat)

    def digest_of(self, expert: str) -> str:
        return self.experts[expert].digest

    def score(self, seat: Seat, blocks: Artifact, name: str | None = None) -> Artifact:
        """Log-probabilities of an expert on a set of blocks."""
        label = self.scores_label(name or seat.name, blocks)
        return score_expert(self.store, seat.artifact, blocks, base=seat.base, precision=self.precision, label=label)

    def scores_label(self, model: str, blocks: Artifact) -> str:
        return f"scores of {model} on {self.text_of[blocks.digest]}"

    def mixture(self, name: str) -> Place:
        return next(m for m in self.recipe.mixtures if m.name == name)

    def made(self, place: Place) -> Artifact:
        if place.name not in self._mixtures:
            self._mixtures[place.name] = place.make(self)
        return self._mixtures[place.name]

    @property
    def goals(self) -> dict[str, Callable[[str], Artifact | None]]:
        """How a goal of a plan is asked for, by its kind, given its name."""
        return {
            "base": lambda _: self.base,
            "expert": self.expert,
            "mixture": lambda name: self.made(self.mixture(name)),
            "single": lambda _: self.single,
        }
