"""From a place and a session to a mixture in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from coterie.api.session import EVERYONE, Session
from coterie.corpora.given_texts import Given, Texts, given
from coterie.errors import RequestError
from coterie.experts.expert_settings import Expert
from coterie.mixtures.outputs.outputs_place import OutputsPlace
from coterie.mixtures.place import Neighbours, Place, known
from coterie.progress import say
from coterie.recipe.read_recipe import readable
from coterie.recipe.recipe import PLACES

assert PLACES  # importing them makes them known


@dataclass(frozen=True)
class Made:
    """A mixture that was made here, and lies in a folder."""

    folder: Path
    place: Place
    """As it was asked for."""
    current: Place
    """As it is: without a router as long as that is not fitted."""
    session: Session


def place_of(settings: Mapping[str, object]) -> Place:
    """The place with these settings; what is None is left at its default.

    Raises:
        RequestError: names the key, and the nearest names.
    """
    try:
        return Place.model_validate({"name": "mixture", **{k: v for k, v in settings.items() if v is not None}})
    except ValidationError as error:
        raise readable(error) from None


def checked(place: Place, session: Session) -> Place:
    """The place as it is checked in a recipe, with defaults that depend on the experts filled in."""
    experts, unknown = {}, {}
    for name, seat in session.seats_by_name.items():
        kind = {"kind": "lora", "adapter": "given"} if seat.base is not None else {"model": "given"}
        experts[name] = Expert.model_validate({"name": name, "corpus": name, "window": seat.window, **kind})
        if seat.knowledge is None:
            unknown[name] = "no window is given for it"
    for slot in place.slots:
        known(slot, experts, "slots", "expert")
    return place.checked(Neighbours(experts, list(session.texts), unknown, {}), "mixture")


def with_texts(place: Place, session: Session, texts: Texts | Mapping[str, Texts]) -> Session:
    """The session with what the router is to be fitted on.

    Raises:
        RequestError: nothing is to be fitted, or the texts are given in the wrong form.
    """
    if place.fitted_on is None:
        raise RequestError("nothing of this mixture is fitted: its router needs no texts", where="texts")
    folder, names = session.workplace.folder, [seat.name for seat in session.seats(place.slots)]
    example = "{" + ", ".join(f"{name!r}: [...]" for name in names) + "}"
    if not isinstance(texts, Mapping):
        if place.fitted_on == "texts of each expert":
            raise RequestError(
                "this gate learns whose data a text is, so it needs texts of each expert",
                where="texts",
                expected=example,
                found=type(texts).__name__,
            )
        found = {EVERYONE: given(texts, folder, where="texts")}
    else:
        for name in texts:
            known(name, session.seats_by_name, "texts", "expert")
        found = {name: given(some, folder, where=f"texts[{name!r}]") for name, some in texts.items()}
        missing = [name for name in names if name not in found]
        if missing and not isinstance(place, OutputsPlace):
            raise RequestError(f"texts of {missing[0]!r} are missing", where="texts", expected=example)
    _dated(place, found)
    return replace(session, texts=found)


def _dated(place: Place, texts: Mapping[str, Given]) -> None:
    for name, one in texts.items() if place.needs_date else ():
        if one.corpus.time is None:
            raise RequestError(
                "this mixture answers as of a date, and the texts have none",
                where=f"texts ({name})",
                do='give rows {"text": ..., "time": "2016-05-01"}',
            )


def make(place: Place, session: Session) -> Made:
    """The mixture, linked from the store into a folder of the session's."""
    current = place
    if place.fitted_on is not None and not session.texts:
        current = place.unfitted
        say("  the router is not fitted yet: m.fit(texts) does it")
    session = replace(session, mixture_made=current.make(session))
    made = session.made(current)
    folder = current.put(session, session.workplace.folder / f"mixture-{made.digest[:16]}")
    return Made(folder, place, current, session)
