"""The verbs of mixtures inside the layers: merge, fit gates, put together, score, put where a person looks for it.

Each states what decides its result (the action); only if the store lacks that does it import torch and transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from coterie.mixtures.layers.layer_gates import ClosedFormGate, LayerGate
from coterie.mixtures.layers.merged_model import Cost, MergedModel, Tuning
from coterie.mixtures.seats import Seat
from coterie.models import device
from coterie.models.checkpoint import contents
from coterie.progress import say
from coterie.spec.json_types import Figures, Settings
from coterie.store import Action, Artifact, Store, link_tree


def merge(store: Store, *, base: Artifact, seats: Sequence[Seat], shared: str | None, label: str) -> Artifact:
    """Every distinct expert's feed-forward blocks on one base.

    Returns:
        a ``merged`` artifact: shards without gates; facts ``bytes`` and, by expert, ``difference``: the largest one of what
        is shared from the base's, 0 where the merge is exact.

    Raises:
        RequestError: the experts do not go together.
    """
    action = Action(
        "merged",
        spec={"shared": shared},
        inputs={"base": contents(base)} | {f"experts.{u}": contents(s.artifact) for u, s in enumerate(seats)},
    )

    def build(folder: Path) -> None:
        from coterie.mixtures.layers import layers_files as disk
        from coterie.mixtures.layers.expert_weights import Directory, source
        from coterie.mixtures.layers.merge import Merge

        start = Directory(base.path)
        sources = [source(seat.artifact.path, start, seat.name) for seat in seats]
        figures = disk.write_experts(Merge(start, sources, shared), folder)  # type: ignore[arg-type]
        figures["difference"] = list(figures["difference"].values())  # names are no part of a result
        (folder / "facts.json").write_text(json.dumps(figures, sort_keys=True) + "\n")

    return store.make(action, build, label=label)


def fit(
    store: Store,
    model: MergedModel,
    *,
    gate: LayerGate,
    seats: Sequence[Seat],
    blocks: Sequence[Artifact],
    seed: int,
    label: str,
) -> Artifact | None:
    """Gates that need no training, or that training starts from; None where they are all zero.

    Args:
        blocks: held-out data of each seat, for a gate that reads it.

    Returns:
        a ``gates`` artifact: ``gates.safetensors`` with rows [S, H] of each layer's gate.
    """
    where, order = device.pick(), model.settings["seats"]
    prompts: list[Sequence[str]] = []
    if isinstance(gate, ClosedFormGate):
        if gate.example_prompts is not None:
            prompts = [gate.example_prompts[seat.name] for seat in seats]
        settings = gate.model_dump(mode="json", exclude={"prompts"})
        spec: dict[str, Any] = {"router": settings, "seats": order, "prompts": prompts}
        inputs = model.inputs
        inputs |= {"tokenizer": model.tokenizer.digest} if prompts else {}
        inputs |= {f"blocks.{u}": b.content("blocks.safetensors") for u, b in enumerate(blocks)}
    elif gate.initial_std is not None:
        spec = {"std": gate.initial_std, "bias": gate.has_bias, "slots": len(order), "seed": seed}
        inputs = {"base": model.base.content("config.json")}
    else:
        return None
    action = Action("gates", spec, inputs, ("torch", "transformers"), device.numerics(where, "fp32"))

    def build(folder: Path) -> None:
        from coterie.mixtures.layers import layers_files as disk

        several = [f"{seat.name!r} ({len(seat.slots)} slots)" for seat in seats if len(seat.slots) > 1]
        if several and isinstance(gate, ClosedFormGate):
            say(f"  {label}: slots of one expert cannot be told apart and get equal rows: {', '.join(several)}")
        disk.make_gates(model, gate, folder, prompts=prompts, blocks=blocks, seed=seed, where=where)

    return store.make(action, build, label=label)


def tune(store: Store, model: MergedModel, tuning: Tuning) -> Artifact:
    """Train a merged model further.

    Returns:
        a ``gates`` artifact (``what: gate``), or a ``merged`` one that holds the gates too.

    Raises:
        WorkError: the run diverged, or a parameter did not do what it was declared to; nothing is published.
    """
    where, train, blocks = device.pick(), tuning.train, tuning.blocks
    precision = device.precision(train.precision, where)
    weights = tuning.weights if len(blocks) > 1 else None
    tuning = replace(tuning, weights=weights and [w / sum(weights) for w in weights])
    spec: Settings = {key: getattr(tuning, key) for key in ("what", "by_label", "losses", "weights", "seed")}
    spec |= {"train": train.identity(), "seats": model.settings["seats"], "gate": model.settings["gate"]}
    inputs = model.inputs | {f"blocks.{i}": b.content("blocks.safetensors") for i, b in enumerate(blocks)}
    kind = "gates" if tuning.what == "gate" else "merged"
    action = Action(kind, spec, inputs, ("torch", "transformers"), device.numerics(where, precision))

    def build(folder: Path) -> Figures:
        from coterie.mixtures.layers.tuning import make

        return make(model, tuning, where, precision, store.scratch(action), folder)

    return store.make(action, build, label=tuning.label, tokens=train.tokens)


def assemble(store: Store, model: MergedModel, *, costs: Sequence[Cost | None] = (), label: str) -> Artifact:
    """The mixture's own files: all but its experts.

    Args:
        costs: of each distinct expert, where the merge was not exact; None where it has no data to measure that on.
    """
    inputs = model.inputs | {"tokenizer": model.tokenizer.digest}
    for u, cost in enumerate(costs):
        if cost is not None:
            inputs[f"own.{u}"] = cost.own.content("scores.safetensors")
            inputs[f"alone.{u}"] = cost.alone.content("scores.safetensors")
    action = Action("mixtures", {"at": "layers", "said": dict(model.settings)}, inputs, ("transformers",))

    def build(folder: Path) -> None:
        from coterie.mixtures.layers import layers_files as disk

        disk.write_merged(model, folder)
        figures = {"exactness": [cost and disk.exactness(cost.own, cost.alone, cost.blocks) for cost in costs]}
        (folder / "facts.json").write_text(json.dumps(figures, sort_keys=True) + "\n")

    return store.make(action, build, label=label)


def score(store: Store, model: MergedModel, blocks: Artifact, *, label: str, only: int | None = None) -> Artifact:
    """A mixture's log-probabilities on blocks, and who was used.

    Args:
        only: one distinct expert answers everything, as with one-hot gates.

    Returns:
        a ``scores`` artifact, see `coterie.mixtures.score_files`, weights being means over gates; facts also hold
        ``by_layer`` (mean weights of experts at each layer) and ``chosen`` (share of the tokens at which an expert's weight
        is the largest, mean over layers).
    """
    where = device.pick()
    action = Action(
        "scores",
        spec={"of": "layers", "said": {k: model.settings[k] for k in ("seats", "gate")}, "only": only},
        inputs=model.inputs | {"blocks": blocks.content("blocks.safetensors")},
        libraries=("torch", "transformers"),
        numerics=device.numerics(where, "fp32"),
    )

    def build(folder: Path) -> None:
        from coterie.mixtures.layers import layers_files as disk

        disk.write_scores(model, blocks, folder, only=only, label=label, where=where)

    return store.make(action, build, label=label)


def materialise(mixture: Artifact, model: MergedModel, target: Path) -> Path:
    """A mixture directory at ``target`` that opens by itself, linked from the store."""
    return link_tree(mixture, target, {"experts": model.experts})
