"""What a mixture that is made in Python is made of: experts, a base, a tokenizer, texts, a store. The counterpart of a
recipe's `coterie.run.parts.Parts`; a place makes its mixtures from either.

A session is never changed: with another expert or other texts it is another session on the same store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from coterie.api.workplace import Workplace
from coterie.corpora.blocks import pack_blocks
from coterie.corpora.documents import read_corpus
from coterie.corpora.given_texts import Given
from coterie.corpora.splits import split_tokens
from coterie.corpora.tokenizer import make_tokenizer
from coterie.corpora.windows import Window
from coterie.errors import RequestError
from coterie.experts.expert_actions import score_expert
from coterie.mixtures.mixture_files import context_of
from coterie.mixtures.place import Place
from coterie.mixtures.seats import Seat, seated
from coterie.models import device
from coterie.models.weight_precision import frozen_precision
from coterie.store.durable import owner

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from coterie.store import Artifact, Store

SEQUENCE = 256
"""Tokens in a packed sequence, as in a recipe, where the models' context allows it."""


@dataclass(frozen=True)
class Session:
    """See `coterie.mixtures.place.Making`.

    Attributes:
        seats_by_name: every expert.
        given_base: what experts branch from, or adapters rest on, where it was given.
        given_tokenizer: directory, hub id or tokenizer; by default it is looked for beside the models.
        texts: by expert or by name; or under `EVERYONE` what all are fitted on.
        length: tokens in a packed sequence.
    """

    workplace: Workplace
    seats_by_name: Mapping[str, Seat]
    given_base: Artifact | None = None
    given_tokenizer: str | Path | PreTrainedTokenizerBase | None = None
    texts: Mapping[str, Given] = field(default_factory=dict)
    length: int | None = None
    seed: int = 0
    mixture_made: Artifact | None = None

    @property
    def store(self) -> Store:
        return self.workplace.store

    @cached_property
    def precision(self) -> device.Precision:
        models = [(seat.base or seat.artifact).path for seat in self.seats_by_name.values()]
        return frozen_precision("auto", models, device.pick())

    # models ---------------------------------------------------------------------------------------------------------------

    @property
    def base(self) -> Artifact:
        """What experts branch from.

        Raises:
            RequestError: it was not given, and no adapter says what it rests on.
        """
        found = self.given_base or next((s.base for s in self.seats_by_name.values() if s.base is not None), None)
        if found is None:
            raise RequestError("the model that the experts branch from is not known", where="base", do="give base=")
        return found

    @cached_property
    def tokenizer(self) -> Artifact:
        given: str | Path | PreTrainedTokenizerBase | None = self.given_tokenizer
        places: list[str | Path] = []
        if given is None:
            models = [self.given_base, *(m for s in self.seats_by_name.values() for m in (s.artifact, s.base))]
            places = [m.path for m in models if m is not None and m.file("tokenizer.json").is_file()]
        elif isinstance(given, str | Path):
            places = [given]
        else:
            folder = self.workplace.folder / f"tokenizer{owner()}"
            given.save_pretrained(folder)
            places = [folder]
        if not places:
            raise RequestError("no tokenizer lies beside any of the models", where="tokenizer", do="give tokenizer=")
        return make_tokenizer(self.store, str(places[0]), [], label="tokenizer")

    def seats(self, slots: Sequence[str], *, knowledge: bool = False) -> list[Seat]:
        def named(name: str, names: tuple[str, ...]) -> Seat:
            seat = self.seats_by_name[name]
            return replace(seat, slots=names, knowledge=seat.knowledge if knowledge else None)

        return seated(slots, {name: seat.artifact for name, seat in self.seats_by_name.items()}, named)

    def digest_of(self, expert: str) -> str:
        return self.seats_by_name[expert].artifact.digest

    def origin(self, expert: str) -> Artifact:
        return self.seats_by_name[expert].base or self.base

    def mixture(self, name: str) -> Place:
        raise RequestError("a mixture made in Python starts from no other", where=name, do="write a recipe with adapt:")

    def made(self, place: Place) -> Artifact:
        assert self.mixture_made is not None
        return self.mixture_made

    # texts ----------------------------------------------------------------------------------------------------------------

    @cached_property
    def sequence_length(self) -> int:
        """Tokens in a packed sequence.

        Raises:
            RequestError: a model does not read as many.
        """
        models = [
            *(s.base or s.artifact for s in self.seats_by_name.values()),
            *([self.given_base] if self.given_base else []),
        ]
        context = min((context_of(model.path) for model in models), default=SEQUENCE)
        if self.length is not None and self.length > context:
            raise RequestError(
                "a model reads shorter sequences",
                where="sequence_length",
                expected=f"at most {context}",
                found=f"{self.length}",
            )
        return self.length or min(SEQUENCE, context)

    def has_data(self, expert: str) -> bool:
        return expert in self.texts or EVERYONE in self.texts

    def documents(self, corpus: str) -> Artifact:
        return read_corpus(self.store, self.texts[corpus].corpus, label=corpus)

    def blocks(self, corpus: str, split: str, window: Window | None = None, tokens: int | None = None) -> Artifact:
        given = self.texts[corpus]
        limits = [n for n in (split_tokens(given.corpus, split), tokens) if n is not None]
        return pack_blocks(
            self.store,
            self.documents(corpus),
            self.tokenizer,
            split=given.split or split,
            length=self.sequence_length,
            window=window if given.corpus.time is not None else None,
            limit_tokens=min(limits, default=None),
            chat=given.corpus.is_chat,
            label=f"{given.split or split} tokens of {corpus}",
        )

    def data(self, expert: str, split: str, tokens: int | None = None) -> Artifact:
        if EVERYONE in self.texts:
            return self.blocks(EVERYONE, split, tokens=tokens)
        return self.blocks(expert, split, self.seats_by_name[expert].window, tokens)

    def slices(self, slots: Sequence[str], split: str, tokens: int | None = None) -> list[Artifact]:
        if EVERYONE in self.texts:
            return [self.blocks(EVERYONE, split, tokens=tokens)]
        distinct = {(self.documents(s).digest, self.seats_by_name[s].window): s for s in slots if s in self.texts}
        most = tokens and max(tokens // len(distinct), 1)
        return [self.data(name, split, most) for name in distinct.values()]

    # scores ---------------------------------------------------------------------------------------------------------------

    def score(self, seat: Seat, blocks: Artifact, name: str | None = None) -> Artifact:
        label = self.scores_label(name or seat.name, blocks)
        return score_expert(self.store, seat.artifact, blocks, base=seat.base, precision=self.precision, label=label)

    def scores_label(self, model: str, blocks: Artifact) -> str:
        return f"scores of {model}"


EVERYONE = "all experts"
"""Where texts are that were given for all experts together; no expert can be called so."""
