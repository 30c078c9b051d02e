"""The verb of co-adaptation: train copies of a mixture's router and experts on together.

It states what decides its result (the action); only if the store lacks that does it import torch and transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from coterie.experts.train_settings import Train
from coterie.launch import on_ranks
from coterie.mixtures.seats import Eligible, Seat
from coterie.models import device
from coterie.models.checkpoint import contents
from coterie.routing.output_routers import OutputRouter
from coterie.spec.json_types import Figures, Settings
from coterie.store import Action, Artifact, Store


def coadapt(
    store: Store,
    *,
    adapt: Train,
    router: OutputRouter,
    eligible: Eligible,
    seats: Sequence[Seat],
    fitted: Artifact | None,
    blocks: Sequence[Artifact],
    valid: Sequence[Artifact],
    seed: int,
    label: str,
) -> Artifact:
    """Copies of a mixture's router and experts, trained on together.

    At every step one expert learns, on documents of its own slice, and the router with it; all others are frozen. The loss
    is the mixture's. Documents are read as of the end of their expert's knowledge: the first date at which it may answer.

    Args:
        adapt: training adapt.
        eligible: the rule of eligibility, and the dates that it goes by.
        seats: the experts to start from.
        fitted: the router to start from; None: fresh.
        blocks: training blocks of each expert's own slice; an expert with several slots has one slice.
        valid: held-out blocks of the same, for the losses in the facts and early stopping.

    Returns:
        an ``adaptations`` artifact: ``experts/0 ...``, ``router/``, ``metrics.jsonl`` and ``facts.json``.

    Raises:
        RequestError: the request cannot be met.
        WorkError: the run diverged, a parameter did not do what it was declared to, or ranks disagree.
    """
    where = device.pick()
    precision = device.precision(adapt.precision, where)
    spec: Settings = {
        "train": {key: value for key, value in adapt.identity().items() if key != "start"},
        "router": router.model_dump(mode="json"),
        "counts": [len(seat.slots) for seat in seats],
        "eligible": eligible,
        "seed": seed,
    }
    inputs = {f"experts.{u}": contents(seat.artifact) for u, seat in enumerate(seats)}
    inputs |= {f"blocks.{u}": b.content("blocks.safetensors") for u, b in enumerate(blocks)}
    inputs |= {f"valid.{u}": b.content("blocks.safetensors") for u, b in enumerate(valid)}
    inputs |= {"router": fitted.content("router.safetensors")} if fitted else {}
    action = Action("adaptations", spec, inputs, ("torch", "transformers"), device.numerics(where, precision))

    def build(folder: Path) -> Figures:
        payload = {
            "experts": [seat.artifact.said() for seat in seats],
            "names": [seat.name for seat in seats],
            "router": fitted.said() if fitted else None,
            "blocks": [b.said() for b in blocks],
            "valid": [b.said() for b in valid],
            "train": adapt.model_dump(mode="json"),
            "spec": spec,
            "where": where,
            "precision": precision,
            "home": str(store.scratch(action)),
            "output": str(store.root / "tracking" / action.key[:16]),
            "label": label,
            "folder": str(folder),
        }
        if adapt.parallel is None:
            from coterie.mixtures.outputs import coadaptation

            return coadaptation.make(payload)
        from coterie.experts import ranks

        return on_ranks(
            "coterie.mixtures.outputs.coadaptation:make", payload, processes=ranks.wanted(adapt, where), label=label
        )

    return store.make(action, build, label=label, tokens=adapt.tokens)


def adapted(adaptation: Artifact, seats: Sequence[Seat]) -> list[Seat]:
    """The seats with their adapted experts."""
    return [replace(seat, artifact=adaptation.part(f"experts/{u}", "experts")) for u, seat in enumerate(seats)]
