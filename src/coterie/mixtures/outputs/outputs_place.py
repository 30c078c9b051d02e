"""At the outputs: experts are scored, a router is fitted on the scores, and their probabilities are mixed.

Each verb states what decides its result (the action); only if the store lacks that does it import torch and transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, Literal

from coterie.experts import ranks
from coterie.mixtures.outputs.outputs_settings import OutputsSettings
from coterie.mixtures.place import Making
from coterie.mixtures.seats import Seat, eligibility, say_shared, slot_order
from coterie.models import device
from coterie.models.checkpoint import contents
from coterie.spec.json_types import Figures, Settings
from coterie.store import Action, Artifact, Store, link_tree

LATER = {"top_k", "top_p"}
"""Settings of a router that its fit does not depend on."""


class OutputsPlace(OutputsSettings):
    """Slots over experts whose probabilities a router mixes."""

    at: Literal["outputs"] = "outputs"
    """Where experts meet: `outputs` mixes their probabilities."""

    def make(self, run: Making) -> Artifact:
        return assemble(run.store, self, self.seated(run), self.fitted_router(run), run.tokenizer)

    def scores(self, run: Making, blocks: Artifact) -> Artifact:
        """From the experts' cached scores: no expert runs."""
        adapted = f" as adapted in {self.name}" if self.adapt is not None else ""
        of_experts = [run.score(seat, blocks, seat.name + adapted) for seat in self.seated(run)]
        return routed(run.store, run.made(self), blocks, of_experts, label=run.scores_label(self.name, blocks))

    def put(self, run: Making, folder: Path) -> Path:
        return materialise(run.made(self), self.seated(run), folder)

    def seats(self, run: Making) -> list[tuple[str, str]]:
        digests = {slot: seat.artifact.digest for seat in self.seated(run) for slot in seat.slots}
        return [(slot, digests[slot]) for slot in self.slots]

    def answering(self, run: Making, days: Sequence[int]) -> list[list[str]]:
        seated, names = self.seated(run), self.experts(run)
        rule = eligibility(**self.eligibility(seated), names=names)
        return [list(compress(names, may)) for may in rule.mask(days, none_is_error=False).tolist()]

    def seated(self, run: Making) -> list[Seat]:
        """The distinct experts; of a co-adapted mixture, the adapted copies."""
        if self.adapt is not None:
            return adapted(self.adaptation(run), self._start(run).seated(run))
        return run.seats(self.slots, knowledge=self.eligible == "strict")

    def fitted_router(self, run: Making) -> Artifact | None:
        """The fitted router; None where nothing is fitted."""
        if self.router.fitting is None:
            return None
        if self.adapt is not None:
            return self.adaptation(run).part("router", "routers")
        seated = self.seated(run)
        blocks = run.slices(self.slots, "valid", self.router.fitting.tokens)
        scores = [[run.score(seat, b) for seat in seated] for b in blocks]
        return fit_router(run.store, self, seated, blocks, scores, run.tokenizer, run.seed)

    def adaptation(self, run: Making) -> Artifact:
        """Copies of the start's router and experts, trained on together."""
        start = self._start(run)
        seated = start.seated(run)
        fitted = start.fitted_router(run) if self.router.fitting is not None else None
        blocks, valid = ([run.data(seat.name, split) for seat in seated] for split in ("train", "valid"))
        return coadapt(run.store, self, seated, fitted, blocks, valid, run.seed)

    def _start(self, run: Making) -> OutputsPlace:
        assert self.adapt is not None
        start = run.mixture(self.adapt.start)
        assert isinstance(start, OutputsPlace)
        return start


def fit_router(
    store: Store,
    place: OutputsSettings,
    seats: Sequence[Seat],
    blocks: Sequence[Artifact],
    scores: Sequence[Sequence[Artifact]],
    tokenizer: Artifact,
    seed: int,
) -> Artifact:
    """Fit a mixture's router.

    Args:
        seats: its distinct experts.
        blocks: held-out data (the valid split).
        scores: of each seat on each of ``blocks``: ``scores[blocks][seat]``.

    Returns:
        a ``routers`` artifact: ``router.safetensors``, and ``router.json`` with the settings and the losses by epoch.

    Raises:
        RequestError: eligibility needs a date that a seat does not have.
        WorkError: the loss is not finite, or there is nothing to fit on.
    """
    router, counts, label = place.router, [len(seat.slots) for seat in seats], f"router of {place.name}"
    if not store.dry:
        say_shared(label, seats, "share its weight")
    inputs = {"tokenizer": tokenizer.digest}
    for b, (block, row) in enumerate(zip(blocks, scores, strict=True)):
        inputs[f"blocks.{b}"] = block.digest
        inputs |= {f"scores.{b}.{u}": score.content("scores.safetensors") for u, score in enumerate(row)}
    spec: dict[str, Any] = {"router": router.model_dump(mode="json", exclude=LATER), "counts": counts, "seed": seed}
    spec["eligible"] = place.eligibility(seats)
    if router.fitting is not None and router.fitting.balance:
        spec["balance"] = "switch"  # until then it was the squared variation of the mean weights
    action = Action("routers", spec=spec, inputs=inputs, libraries=("torch",), numerics="cpu-fp32")

    def build(folder: Path) -> None:
        from coterie.mixtures.outputs import cached_scores

        cached_scores.fit_router(router, spec, seats, folder, blocks=blocks, scores=scores, label=label)

    return store.make(action, build, label=label)


def assemble(
    store: Store, place: OutputsSettings, seats: Sequence[Seat], fitted: Artifact | None, tokenizer: Artifact
) -> Artifact:
    """A mixture of finished experts.

    Args:
        seats: its distinct experts, in order.
        fitted: the fitted router; None where nothing is fitted.
        tokenizer: the one that every expert uses.

    Raises:
        RequestError: experts with different tokenizers or vocabularies; an unknown date that the rule of eligibility needs.
    """
    experts = [
        {
            "name": m.name,
            "dir": f"experts/{m.name}",
            "base": f"experts/base-{m.base.digest[:12]}" if m.base else None,
            "digest": m.artifact.digest,
            **m.dates,
        }
        for m in seats
    ]
    settings: Settings = {
        "slots": [{"name": name, "expert": u} for name, u in zip(place.slots, slot_order(place.slots, seats), strict=True)],
        "experts": experts,
        "router": place.router.model_dump(mode="json"),
        "eligible": place.rule(seats),
    }
    inputs = {f"experts.{i}": m.artifact.digest for i, m in enumerate(seats)} | {"tokenizer": tokenizer.digest}
    inputs |= {f"bases.{i}": m.base.digest for i, m in enumerate(seats) if m.base}
    inputs |= {"router": fitted.digest} if fitted else {}

    def build(folder: Path) -> None:
        from coterie.mixtures.outputs.outputs_files import write

        write(settings, seats, fitted, tokenizer, folder)

    action = Action("mixtures", settings, inputs, libraries=("transformers",))
    return store.make(action, build, label=f"mixture {place.name}")


def routed(store: Store, mixture: Artifact, blocks: Artifact, scores: Sequence[Artifact], *, label: str) -> Artifact:
    """A mixture's log-probabilities on scored blocks; no expert runs.

    Args:
        scores: of each distinct expert on ``blocks``, in the mixture's order.

    Returns:
        artifact ``scores``: ``logp`` [N, T-1] and ``answered`` [N, T-1] (0 where no expert may answer at the document's
        date). Its facts hold, over counted tokens: ``tokens``, ``nll``, ``utilization`` (mean weight of each distinct
        expert), ``entropy`` (nats), ``confidence`` (mean largest weight), ``by_position`` (mean weights at each
        position) and ``positions`` (tokens at each position).
    """
    action = Action(
        "scores",
        spec={"of": "mixture"},
        inputs={
            "mixture": mixture.digest,
            "blocks": blocks.content("blocks.safetensors", "documents.parquet"),
            **{f"scores.{u}": s.content("scores.safetensors") for u, s in enumerate(scores)},
        },
        libraries=("torch",),
        numerics="cpu-fp32",
    )

    def build(folder: Path) -> None:
        from coterie.mixtures.outputs.cached_scores import write_scores

        write_scores(mixture, blocks, scores, folder)

    return store.make(action, build, label=label)


def materialise(mixture: Artifact, seats: Sequence[Seat], target: Path) -> Path:
    """A mixture directory at ``target`` that opens by itself: its files and every expert's, linked from the store."""
    entries = json.loads(mixture.file("config.json").read_text())["experts"]
    parts = {entry["dir"]: seat.artifact for entry, seat in zip(entries, seats, strict=True)}
    parts |= {e["base"]: m.base for e, m in zip(entries, seats, strict=True) if m.base is not None}
    return link_tree(mixture, target, parts)


def coadapt(
    store: Store,
    place: OutputsSettings,
    seats: Sequence[Seat],
    fitted: Artifact | None,
    blocks: Sequence[Artifact],
    valid: Sequence[Artifact],
    seed: int,
) -> Artifact:
    """Copies of a mixture's router and experts, trained on together.

    At every step one expert learns, on documents of its own slice, and the router with it; all others are frozen. The loss
    is the mixture's. Documents are read as of the end of their expert's knowledge: the first date at which it may answer.

    Args:
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
    adapt, label, where = place.adapt, f"co-adaptation {place.name}", device.pick()
    assert adapt is not None
    precision = device.precision(adapt.precision, where)
    spec: Settings = {
        "train": {key: value for key, value in adapt.identity().items() if key != "start"},
        "router": place.router.model_dump(mode="json"),
        "counts": [len(seat.slots) for seat in seats],
        "eligible": place.eligibility(seats),
        "seed": seed,
    }
    inputs = {f"experts.{u}": contents(seat.artifact) for u, seat in enumerate(seats)}
    inputs |= {f"blocks.{u}": b.content("blocks.safetensors") for u, b in enumerate(blocks)}
    inputs |= {f"valid.{u}": b.content("blocks.safetensors") for u, b in enumerate(valid)}
    inputs |= {"router": fitted.content("router.safetensors")} if fitted else {}
    action = Action("adaptations", spec, inputs, ("torch", "transformers"), device.numerics(where, precision))

    def build(folder: Path) -> Figures:
        payload = {
            "experts": [seat.artifact for seat in seats],
            "names": [seat.name for seat in seats],
            "router": fitted,
            "blocks": blocks,
            "valid": valid,
            "train": adapt.model_dump(mode="json"),
            "spec": spec,
            "where": where,
            "precision": precision,
            "home": str(store.scratch(action)),
            "output": str(store.root / "tracking" / action.key[:16]),
            "label": label,
            "folder": str(folder),
        }
        from coterie.mixtures.outputs import coadaptation

        return ranks.run(partial(coadaptation.make, payload), adapt, where, label)

    return store.make(action, build, label=label, tokens=adapt.tokens)


def adapted(adaptation: Artifact, seats: Sequence[Seat]) -> list[Seat]:
    """The seats with their adapted experts."""
    return [replace(seat, artifact=adaptation.part(f"experts/{u}", "experts")) for u, seat in enumerate(seats)]
