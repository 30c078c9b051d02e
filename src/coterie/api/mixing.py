"""`coterie.mix`: a mixture of models at hand, as a recipe's `mixtures:` makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from coterie.api.given_models import named, seat, weights
from coterie.api.making import checked, make, place_of, with_texts
from coterie.api.remaking import opened
from coterie.api.session import Session
from coterie.api.spans import dated
from coterie.api.workplace import Workplace
from coterie.dates import Time, day
from coterie.errors import RequestError
from coterie.mixtures.adapters.adapter_routers import AdapterGate
from coterie.mixtures.layers.layer_gates import LayerGate
from coterie.mixtures.place import known
from coterie.models.checkpoint import contents
from coterie.routing.output_routers import OutputRouter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from coterie.corpora.given_texts import Texts
    from coterie.mixtures.layers.layers_settings import Tune
    from coterie.mixtures.mixture import Mixture, Model, Span

Router: TypeAlias = str | Mapping[str, object] | OutputRouter | LayerGate | AdapterGate
"""A kind's name, its settings as in a recipe, or one of `coterie.routers`."""


def mix(
    experts: Mapping[str, Model] | Sequence[Model],
    *,
    at: Literal["outputs", "layers", "adapters"] = "outputs",
    router: Router = "uniform",
    base: Model | None = None,
    texts: Texts | Mapping[str, Texts] | None = None,
    slots: Sequence[str] | Mapping[str, int] | None = None,
    windows: Mapping[str, Span] | None = None,
    eligible: Literal["all", "strict", "inclusive"] | None = None,
    fallback: str | None = None,
    default_time: Time | None = None,
    shared: Literal["base", "average"] | None = None,
    tune: Tune | None = None,
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None,
    sequence_length: int | None = None,
    seed: int = 0,
    store: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Mixture:
    """Mix models. Every setting means what it means in a recipe; see `docs/how-to/python.md`.

    Args:
        experts: models in memory, directories or hub ids, by name or in a list; at ``adapters`` LoRA adapters. What stands
            in a list twice has two slots.
        at: where they meet.
        router: who decides. One that is fitted decides after `fit`, or at once if ``texts`` are given; till then weights
            need no data.
        base: what adapters rest on, and what experts at ``layers`` branch from.
        texts: to fit the router on, as for `fit`.
        slots: names, repeats allowed, or how many for each; one for each expert by default.
        windows: by expert, the first day that it has read and the first day after: ``{"old": ("2013", "2015")}``.
        eligible: which experts a date may use; ``strict`` where there are windows.
        fallback, default_time: as in a recipe.
        shared, tune: at ``layers``, as in a recipe.
        tokenizer: by default the one beside the models.
        sequence_length: tokens in a packed sequence of texts; 256, or the models' context where that is shorter.
        store: folder of finished work, which is kept and used again; by default a temporary one.
        dtype, device: of the mixture in memory.

    Raises:
        RequestError: the models do not go together, or a setting is wrong; says which, and the remedy.
    """
    workplace = Workplace(store)
    models, order = named(experts)
    rests = weights(workplace, base, "base") if base is not None else None
    for name in windows or {}:
        known(name, models, "windows", "expert")
    spans = windows or {}
    seats = {name: dated(seat(workplace, name, model, rests), spans.get(name)) for name, model in models.items()}
    if at == "adapters" and len({contents(s.base) for s in seats.values() if s.base is not None}) > 1:
        raise RequestError(
            "the adapters rest on different models, and a mixture has one base", where="base", do="give base="
        )
    session = Session(workplace, seats, rests, tokenizer, length=sequence_length, seed=seed)
    settings: dict[str, object] = {"at": at, "slots": slots if slots is not None else order, "router": router}
    settings |= {"eligible": eligible, "fallback": fallback, "shared": shared, "tune": tune}
    settings["default_time"] = day(default_time) if default_time is not None else None
    place = checked(place_of(settings), session)
    if texts is not None:
        session = with_texts(place, session, texts)
    return opened(make(place, session), dtype, device)
