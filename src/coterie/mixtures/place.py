"""Places where experts meet. A place is one class: its settings in a recipe, what it asks of the experts, and how a mixture
there is made, scored and put where a person looks for it.

A place sees the run that it is part of through `Making`: the experts, their data and the store, and nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, Self

from pydantic import model_validator

from coterie.errors import RequestError
from coterie.spec.kind import Kind, near
from coterie.spec.settings import Name

if TYPE_CHECKING:
    from coterie.experts.expert_settings import Expert
    from coterie.mixtures.seats import Seat
    from coterie.models.device import Precision
    from coterie.store import Artifact, Store


class Making(Protocol):
    """What a place may ask of the run that makes its mixtures."""

    @property
    def store(self) -> Store: ...

    @property
    def seed(self) -> int: ...

    @property
    def precision(self) -> Precision:
        """In which weights that do not train are used."""
        ...

    @property
    def base(self) -> Artifact:
        """What experts branch from."""

    @property
    def tokenizer(self) -> Artifact: ...

    def seats(self, slots: Sequence[str], *, knowledge: bool = False) -> list[Seat]:
        """The distinct experts, in order of first use; equal ones have one seat with several slots. With ``knowledge``, find
        out when the text behind each ends."""

    def digest_of(self, expert: str) -> str: ...

    def origin(self, expert: str) -> Artifact:
        """The weights that an expert branches from; of an adapter, what it rests on."""

    def has_data(self, expert: str) -> bool:
        """Whether a corpus is named for it; a finished expert may have none."""

    def blocks(self, corpus: str, split: str) -> Artifact: ...

    def data(self, expert: str, split: str, tokens: int | None = None) -> Artifact:
        """Blocks of an expert's own slice."""

    def slices(self, slots: Sequence[str], split: str, tokens: int | None = None) -> list[Artifact]:
        """Blocks of the slices that the experts of these slots learned from, each once, in order of first use; at most so
        many tokens, in equal parts."""

    def score(self, seat: Seat, blocks: Artifact, name: str | None = None) -> Artifact:
        """An expert's log-probabilities on blocks; ``name`` is for its label, where the seat's would be another expert's."""

    def scores_label(self, model: str, blocks: Artifact) -> str:
        """What a model's scores on some blocks are called, in plans and in the log."""

    def mixture(self, name: str) -> Place: ...

    def made(self, place: Place) -> Artifact:
        """A mixture's artifact."""


@dataclass(frozen=True)
class Neighbours:
    """The other parts of a recipe, for checks across them."""

    experts: Mapping[str, Expert]
    corpora: Sequence[str]
    unknown: Mapping[str, str]
    """Experts of which the recipe cannot tell when their knowledge ends, and why."""
    mixtures: Mapping[str, Place]
    """With their slots by name."""


class Place(Kind):
    """A mixture: slots over experts, and the place where they meet."""

    tag_key: ClassVar[str] = "at"
    noun: ClassVar[str] = "place where experts meet"

    name: Name
    """Name in this recipe."""
    slots: tuple[str, ...] = ()
    """Experts by name or glob, one slot each, repeats allowed; also `{NAME: COUNT}`."""
    at: str
    """Where experts meet."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        slots = value.get("slots")
        if isinstance(slots, str):
            return {**value, "slots": [slots]}
        if isinstance(slots, dict):
            if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in slots.values()):
                raise ValueError("slots: counts must be whole numbers from 1")
            return {**value, "slots": [name for name, n in slots.items() for _ in range(n)]}
        return value

    @property
    def needs_date(self) -> bool:
        """Whether every question must come with a date."""
        return False

    @property
    def own_corpora(self) -> tuple[str, ...]:
        """Corpora that the mixture itself is trained on, besides its experts' own."""
        return ()

    @property
    def fitted_on(self) -> Literal["texts", "texts of each expert"] | None:
        """What its router is fitted on, and whether that must say whose data a text is; None: nothing is fitted."""
        return None

    @property
    def unfitted(self) -> Self:
        """The same before its router is fitted: weights that need no data."""
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its slots; of a mixture that makes its own experts, theirs."""
        return self.slots

    @abstractmethod
    def checked(self, among: Neighbours, where: str) -> Self:
        """Itself with defaults that depend on the experts filled in.

        Args:
            where: its key in the recipe.

        Raises:
            RequestError: an expert does not go with this place, or a setting with the experts.
        """

    @abstractmethod
    def make(self, run: Making) -> Artifact:
        """The ``mixtures`` artifact, with all that has to be fitted, trained or merged for it."""

    @abstractmethod
    def scores(self, run: Making, blocks: Artifact) -> Artifact:
        """Its log-probabilities on blocks and who was used; see `coterie.mixtures.score_files`."""

    @abstractmethod
    def put(self, run: Making, folder: Path) -> Path:
        """A directory that opens by itself, linked from the store."""

    def experts(self, run: Making) -> list[str]:
        """The distinct experts by name, in the order of the figures of use."""
        return [seat.name for seat in run.seats(self.slots)]

    def answering(self, run: Making, days: Sequence[int]) -> list[list[str]]:
        """For each date (an ordinal), the experts that may answer as of it."""
        return [self.experts(run)] * len(days)

    def seats(self, run: Making) -> list[tuple[str, str]]:
        """For each slot its name and the digest of the expert there."""
        return [(slot, run.digest_of(slot)) for slot in self.slots]


def check_top_k(top_k: int | None, slots: Sequence[str], where: str, what: str) -> None:
    """RequestError if a router would keep more than there are."""
    if top_k is not None and top_k > len(slots):
        expected = f"at most {len(slots)}"
        raise RequestError(f"top_k is above the number of {what}", where=where, expected=expected, found=str(top_k))


def known(name: str, among: Mapping[str, object] | Sequence[str], where: str, what: str) -> None:
    """RequestError if a name is none of those there are."""
    if name not in among:
        names = dict.fromkeys(among)
        close = near(name, names)
        raise RequestError(
            f"no {what} is called {name!r}",
            where=where,
            expected=", ".join(close) or "none is defined",
            do=f"did you mean {close[0]!r}?" if close else "define it",
        )
