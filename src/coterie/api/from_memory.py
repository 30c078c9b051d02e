"""What a mixture is made of, from the mixture itself as it is in memory."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import cast

from transformers import PreTrainedModel

from coterie.api.given_models import seat, weights
from coterie.api.making import place_of
from coterie.api.session import Session
from coterie.api.workplace import Workplace
from coterie.corpora.windows import Window
from coterie.errors import RequestError
from coterie.mixtures.layers.layers_mixture import LayersMixture, expert_of
from coterie.mixtures.mixture import Mixture, Model
from coterie.mixtures.outputs.outputs_mixture import OutputsMixture
from coterie.mixtures.place import Place
from coterie.mixtures.seats import Seat
from coterie.progress import say
from coterie.store import Artifact
from coterie.store.durable import owner


def of_memory(
    mixture: Mixture, workplace: Workplace, before: tuple[Place, Session] | None, folder: Path | None
) -> tuple[Place, Session]:
    """A place and a session that make a mixture of the same experts.

    Args:
        before: how it was made, if that is known: with its texts the router can be fitted again, whose parameters are left
            behind.
        folder: a directory of the mixture, if it holds these very weights.
    """
    base: Artifact | None = None
    names = [entry["name"] for entry in mixture.config.experts]
    if isinstance(mixture, OutputsMixture):
        seats = [_at_outputs(mixture, u, workplace, folder) for u in range(len(names))]
    elif isinstance(mixture, LayersMixture):
        whole = [expert_of(mixture, u) for u in range(len(names))]
        base = weights(workplace, whole[0], "base")
        seats = [seat(workplace, n, m) for n, m in zip(names, whole, strict=True)]
    else:
        if folder is None:
            folder = workplace.folder / f"mixture{owner()}"
            mixture.save_pretrained(folder)
        base = weights(workplace, folder / "base", "base")
        seats = [seat(workplace, n, folder / "experts" / n, base) for n in names]
    slots = [slot["name"] for slot in mixture.config.slots]
    by_name = {slot["name"]: replace(seats[slot["expert"]], name=slot["name"], slots=()) for slot in mixture.config.slots}
    if before is not None:
        place, session = before
        return place, replace(session, seats_by_name=by_name, given_base=base or session.given_base)
    return _place(mixture, slots), Session(workplace, by_name, base, mixture.tokenizer)


def _at_outputs(mixture: OutputsMixture, number: int, workplace: Workplace, folder: Path | None) -> Seat:
    """One of its experts, with the dates that rules go by."""
    entry = mixture.config.experts[number]
    model: Model = cast(PreTrainedModel, mixture.experts[number])
    base = None
    if folder is not None:
        model = there if (there := folder / entry["dir"]).is_dir() else folder  # a folder may be its one expert's own
        base = weights(workplace, folder / entry["base"], "base") if entry.get("base") else None
    found = seat(workplace, entry["name"], model, base)
    start, end, knowledge = (date.fromisoformat(entry[k]) if entry.get(k) else None for k in ("start", "end", "knowledge"))
    window = Window(start=start, end=end) if start is not None and end is not None else None
    return replace(found, window=window, knowledge=knowledge)


def _place(mixture: Mixture, slots: list[str]) -> Place:
    """The place as the configuration tells it."""
    config = mixture.config
    if isinstance(mixture, OutputsMixture):
        rule, fallback = config.eligible, config.eligible.get("fallback")
        return place_of(
            {
                "at": "outputs",
                "slots": slots,
                "router": config.router,
                "eligible": rule["rule"],
                "fallback": None if fallback is None else config.experts[fallback]["name"],
                "default_time": rule.get("default_time"),
            }
        )
    if isinstance(mixture, LayersMixture):
        gate = {key: value for key, value in config.gate.items() if key in ("kind", "top_k", "bias") and value}
        try:
            return place_of({"at": "layers", "slots": slots, "router": gate})
        except RequestError:
            say(f"  how its {gate['kind']} gates were made is not known from the weights: they become uniform")
            return place_of({"at": "layers", "slots": slots})
    router = {key: value for key, value in config.router.items() if value is not None}
    return place_of({"at": "adapters", "slots": slots, "router": router})
