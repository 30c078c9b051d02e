"""`fit`, `add`, `remove` and `export` of a mixture: it is made anew from what it was made of.

That is known of one that `coterie.mix` made, and read from the weights in memory of one that was opened from a directory, or
whose weights have changed since.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from coterie.api.from_memory import of_memory
from coterie.api.given_models import checked_name, same_weights, seat
from coterie.api.making import Made, checked, make, with_texts
from coterie.api.session import EVERYONE, Session
from coterie.api.spans import dated
from coterie.api.workplace import Workplace
from coterie.corpora.given_texts import Given, Texts, given
from coterie.errors import RequestError
from coterie.mixtures.export.export_formats import NAMES
from coterie.mixtures.layers.layers_mixture import LayersMixture
from coterie.mixtures.load import load
from coterie.mixtures.mixture import Mixture, Model, Span
from coterie.mixtures.place import Place, known
from coterie.progress import say


@dataclass(frozen=True)
class Remaking:
    """See `coterie.mixtures.mixture.Source`.

    Attributes:
        folder: where the mixture was opened from.
        made: how it was made, if it was made here.
        workplace: what must last as long as the mixture does.
    """

    folder: Path
    made: Made | None = None
    workplace: Workplace | None = None

    def parts(self, mixture: Mixture) -> tuple[Place, Session]:
        """What to make it anew from."""
        same = same_weights(mixture, self.folder)
        if self.made is None:
            return of_memory(mixture, self.workplace or Workplace(), None, self.folder if same else None)
        before = self.made.place, self.made.session
        return before if same else of_memory(mixture, self.made.session.workplace, before, None)

    def fit(self, mixture: Mixture, texts: Texts | Mapping[str, Texts]) -> Mixture:
        place, session = self.parts(mixture)
        return self._make(mixture, place, with_texts(place, session, texts))

    def add(
        self, mixture: Mixture, name: str, model: Model, *, slots: int, window: Span | None, texts: Texts | None
    ) -> Mixture:
        place, session = self.parts(mixture)
        if checked_name(name) in session.seats_by_name:
            raise RequestError(f"an expert is called {name!r} already", where="name", do="choose another name, or remove it")
        base = session.given_base or (session.base if place.at == "adapters" else None)
        new = dated(seat(session.workplace, name, model, base), window)
        seats = {**session.seats_by_name, name: new}
        place = place.model_copy(update={"slots": (*place.slots, *[name] * slots)})
        return self._make(mixture, place, replace(session, seats_by_name=seats, texts=_more(place, session, name, texts)))

    def remove(self, mixture: Mixture, name: str) -> Mixture:
        place, session = self.parts(mixture)
        known(name, session.seats_by_name, "name", "expert")
        seats = {n: seat for n, seat in session.seats_by_name.items() if n != name}
        texts = {n: given for n, given in session.texts.items() if n != name}
        if not seats:
            raise RequestError("no expert would be left", where="name", found=name)
        place = place.model_copy(update={"slots": tuple(slot for slot in place.slots if slot != name)})
        return self._make(mixture, place, replace(session, seats_by_name=seats, texts=texts))

    def export(self, mixture: Mixture, format: str, folder: str | Path, *, expand: bool, dtype: str | None) -> None:
        from coterie.mixtures.export.gguf import export_gguf
        from coterie.mixtures.export.write_checkpoint import export

        known(format, NAMES, "format", "format")
        with tempfile.TemporaryDirectory(prefix="coterie-") as temp:
            here = Path(temp) / "mixture"
            if isinstance(mixture, LayersMixture):
                mixture.save_pretrained(here)
            else:
                mixture.config.save_pretrained(here)  # enough to be told why it cannot be exported
            if format == "gguf":
                done = export_gguf(here, folder, dtype=dtype or "fp32", expand=expand, say=say)
            else:
                done = export(here, folder, format, expand=expand, dtype=dtype, say=say)
        for line in done.lines:
            say(f"  {line}")

    def _make(self, mixture: Mixture, place: Place, session: Session) -> Mixture:
        return opened(make(checked(place, session), session), mixture.dtype)

    def __deepcopy__(self, memo: object) -> Remaking:
        return self  # it is never changed, and holds what there is once: a store's locks, a folder

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # a pickled mixture knows its folder no more


def opened(made: Made, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None) -> Mixture:
    """The mixture in memory, which knows how it was made."""
    mixture = load(made.folder, dtype=dtype, device=device)
    mixture.source = Remaking(made.folder, made)
    return mixture


def _more(place: Place, session: Session, name: str, texts: Texts | None) -> Mapping[str, Given]:
    """The texts of a session that gets one expert more."""
    by_expert = bool(session.texts) and EVERYONE not in session.texts
    if texts is None:
        if by_expert and place.fitted_on == "texts of each expert":
            raise RequestError(f"the gate is fitted on texts of each expert, and {name!r} has none", do="give texts=")
        return session.texts
    if not by_expert:
        raise RequestError("the router is not fitted on texts of each expert", where="texts", do="give them to m.fit")
    return {**session.texts, name: given(texts, session.workplace.folder, where="texts")}
