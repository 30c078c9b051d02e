"""At the layers: the experts' feed-forward blocks are merged into one model, its gates fitted or trained.

Each method states what decides its result (the action); only if the store lacks that does it import torch and transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from coterie.mixtures.layers.layer_gates import ClosedFormGate
from coterie.mixtures.layers.layers_settings import LayersSettings, MergedModel, MergedSettings, Tuning
from coterie.mixtures.place import Making
from coterie.mixtures.seats import Seat, say_shared, slot_order
from coterie.models import device
from coterie.models.checkpoint import contents
from coterie.spec.json_types import Figures, Settings
from coterie.store import Action, Artifact, Store, link_tree


class LayersPlace(LayersSettings):
    """Slots over experts whose feed-forward blocks one gate a layer mixes."""

    at: Literal["layers"] = "layers"
    """Where experts meet: `layers` merges their feed-forward blocks into one mixture-of-experts model."""

    def make(self, run: Making) -> Artifact:
        """The mixture's own files: all but its experts. Where the merge was not exact, what that costs each expert: its
        scores by itself against those as the only one in the mixture."""
        model = self.model(run)
        costs: list[tuple[Artifact, Artifact, Artifact] | None] = []
        inputs = model.inputs | {"tokenizer": model.tokenizer.digest}
        for u, seat in enumerate(run.seats(self.slots)) if self.shared is not None else ():
            if not run.has_data(seat.name):
                costs.append(None)  # made elsewhere, and no text is named to measure it on
                continue
            blocks = run.data(seat.name, "valid")
            alone = _score(run, model, blocks, f"{seat.name} alone in {self.name}", u)
            own = run.score(seat, blocks)
            costs.append((own, alone, blocks))
            inputs |= {f"own.{u}": own.content("scores.safetensors"), f"alone.{u}": alone.content("scores.safetensors")}
        action = Action("mixtures", {"at": "layers", "said": dict(model.settings)}, inputs, ("transformers",))

        def build(folder: Path) -> None:
            from coterie.mixtures.layers import layers_files as disk

            disk.write_merged(model, folder)
            figures = {"exactness": [cost and disk.exactness(*cost) for cost in costs]}
            (folder / "facts.json").write_text(json.dumps(figures, sort_keys=True) + "\n")

        return run.store.make(action, build, label=f"mixture {self.name}")

    def scores(self, run: Making, blocks: Artifact) -> Artifact:
        return _score(run, self.model(run), blocks, run.scores_label(self.name, blocks))

    def put(self, run: Making, folder: Path) -> Path:
        return link_tree(run.made(self), folder, {"experts": self.model(run).experts})

    def model(self, run: Making) -> MergedModel:
        """The finished model: merged, gated, tuned."""
        seats, gate, tune = run.seats(self.slots), self.router, self.tune
        base = run.origin(seats[0].name)
        settings: MergedSettings = {
            "names": list(self.slots),
            "seats": slot_order(self.slots, seats),
            "digests": [seat.artifact.digest for seat in seats],
            "gate": {"kind": gate.kind, "top_k": gate.slots_kept, "bias": gate.has_bias},
        }
        model = MergedModel(settings, self._merged(run, base, seats), None, base, run.tokenizer)
        model = replace(model, gates=self._gates(run, model, seats))
        if gate.label_training is not None:
            by_label = Tuning(
                what="gate",
                by_label=True,
                losses=gate.auxiliary,
                blocks=[run.data(seat.name, "valid") for seat in seats],
                weights=[1.0] * len(seats),
                train=gate.label_training,
                seed=run.seed,
                label=f"gates of {self.name}, by label",
            )
            model = replace(model, gates=_tuned(run.store, model, by_label))
        if tune is None:
            return model
        if tune.corpora is not None:
            blocks, weights = [run.blocks(name, "train") for name in tune.corpora], list(tune.corpora.values())
        else:
            distinct = {b.digest: b for b in (run.data(seat.name, "train") for seat in seats)}
            blocks, weights = list(distinct.values()), [1.0] * len(distinct)
        tuning = Tuning(
            what=tune.what,
            losses=gate.auxiliary,
            blocks=blocks,
            weights=weights,
            train=tune.train.model_copy(update={"tokens": tune.tokens}),
            seed=run.seed,
            label=f"{self.name}, tuned ({tune.what})",
        )
        made = _tuned(run.store, model, tuning)
        return replace(model, gates=made) if tune.what == "gate" else replace(model, gates=made, experts=made)

    def _merged(self, run: Making, base: Artifact, seats: Sequence[Seat]) -> Artifact:
        """Every distinct expert's feed-forward blocks on one base: a ``merged`` artifact of shards without gates; facts
        ``bytes`` and, by expert, ``difference``: the largest one of what is shared from the base's, 0 where the merge is
        exact."""
        inputs = {"base": contents(base)} | {f"experts.{u}": contents(s.artifact) for u, s in enumerate(seats)}

        def build(folder: Path) -> None:
            from coterie.mixtures.layers import layers_files as disk
            from coterie.mixtures.layers.expert_weights import Directory, source
            from coterie.mixtures.layers.merge import Merge

            start = Directory(base.path)
            sources = [source(seat.artifact.path, start, seat.name) for seat in seats]
            figures = disk.write_experts(Merge(start, sources, self.shared), folder)
            figures["difference"] = list(figures["difference"].values())  # names are no part of a result
            (folder / "facts.json").write_text(json.dumps(figures, sort_keys=True) + "\n")

        action = Action("merged", {"shared": self.shared}, inputs)
        return run.store.make(action, build, label=f"experts of {self.name}, merged")

    def _gates(self, run: Making, model: MergedModel, seats: Sequence[Seat]) -> Artifact | None:
        """Gates that need no training, or that training starts from: a ``gates`` artifact with rows [S, H] of each layer's;
        None where they are all zero."""
        gate, order, label = self.router, model.settings["seats"], f"gates of {self.name}"
        prompts: list[Sequence[str]] = []
        blocks: list[Artifact] = []
        if isinstance(gate, ClosedFormGate):
            if gate.example_prompts is not None:
                prompts = [gate.example_prompts[seat.name] for seat in seats]
            else:
                most = gate.most_tokens and max(gate.most_tokens // len(seats), 1)
                blocks = [run.data(seat.name, "valid", most) for seat in seats]
            settings = gate.model_dump(mode="json", exclude={"prompts"})
            spec: Settings = {"router": settings, "seats": order, "prompts": prompts}
            inputs = model.inputs | ({"tokenizer": model.tokenizer.digest} if prompts else {})
            inputs |= {f"blocks.{u}": b.content("blocks.safetensors") for u, b in enumerate(blocks)}
        elif gate.initial_std is not None:
            spec = {"std": gate.initial_std, "bias": gate.has_bias, "slots": len(order), "seed": run.seed}
            inputs = {"base": model.base.content("config.json")}
        else:
            return None
        where, precision = device.pick(), run.precision if isinstance(gate, ClosedFormGate) else "fp32"
        action = Action("gates", spec, inputs, ("torch", "transformers"), device.numerics(where, precision))

        def build(folder: Path) -> None:
            from coterie.mixtures.layers import layers_files as disk

            if isinstance(gate, ClosedFormGate):
                say_shared(label, seats, "get equal rows")
            disk.make_gates(
                model, gate, folder, prompts=prompts, blocks=blocks, seed=run.seed, where=where, precision=precision
            )

        return run.store.make(action, build, label=label)


def _tuned(store: Store, model: MergedModel, tuning: Tuning) -> Artifact:
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


def _score(run: Making, model: MergedModel, blocks: Artifact, label: str, only: int | None = None) -> Artifact:
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
        numerics=device.numerics(where, run.precision),
    )

    def build(folder: Path) -> None:
        from coterie.mixtures.layers import layers_files as disk

        disk.write_scores(model, blocks, folder, only=only, label=label, where=where, precision=run.precision)

    return run.store.make(action, build, label=label)
