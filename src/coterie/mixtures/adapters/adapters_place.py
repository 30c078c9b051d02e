"""At adapters: gates over LoRA experts of one frozen base are fitted or trained; or all of it is trained together.

Each method states what decides its result (the action); only if the store lacks that does it import torch and transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from coterie.errors import RequestError
from coterie.experts import ranks
from coterie.mixtures.adapters.adapter_routers import ClosedFormGate, mixture_settings
from coterie.mixtures.adapters.adapters_settings import AdaptersSettings
from coterie.mixtures.place import Making
from coterie.mixtures.seats import Seat, slot_order
from coterie.models import device
from coterie.models.checkpoint import contents
from coterie.spec.digest import canonical_json, digest
from coterie.spec.json_types import Figures, Settings
from coterie.store import Action, Artifact, link_tree

_LATER = {"top_k", "top_p", "temperature"}
"""Settings of a closed form that its fit does not depend on."""


class AdaptersPlace(AdaptersSettings):
    """Slots over LoRA experts on one frozen base, mixed inside the model."""

    at: Literal["adapters"] = "adapters"
    """Where experts meet: `adapters` mixes updates of one frozen base."""

    def base(self, run: Making) -> Artifact:
        """What all its experts rest on."""
        return run.base if self.joint else run.origin(self.slots[0])

    def experts(self, run: Making) -> list[str]:
        return list(self.names) if self.joint else super().experts(run)

    def seats(self, run: Making) -> list[tuple[str, str]]:
        if self.joint is None:
            return super().seats(run)
        mixture = run.made(self)  # holds its experts itself
        names = [e["name"] for e in json.loads(mixture.file("config.json").read_text())["experts"]]
        inside = {n: {f: h for f, h in mixture.files.items() if f.startswith(f"experts/{n}/")} for n in names}
        return [(name, digest(files)) for name, files in inside.items()]

    def put(self, run: Making, folder: Path) -> Path:
        experts = {f"experts/{seat.name}": seat.artifact for seat in run.seats(self.slots)}
        return link_tree(run.made(self), folder, {"base": self.base(run)} | experts)

    def scores(self, run: Making, blocks: Artifact) -> Artifact:
        """Weights are means over gates."""
        mixture, seats, base = run.made(self), run.seats(self.slots), self.base(run)
        where, label = device.pick(), run.scores_label(self.name, blocks)
        inputs = {"mixture": mixture.digest, "blocks": blocks.content("blocks.safetensors", "documents.parquet")}
        libraries = ("torch", "transformers")
        action = Action("scores", {"of": "adapters"}, inputs, libraries, device.numerics(where, run.precision))

        def build(folder: Path) -> None:
            from coterie.mixtures.adapters import adapter_gate_fits as fitting

            fitting.write_scores(mixture, seats, base, blocks, folder, where, run.precision, label)

        return run.store.make(action, build, label=label)

    def make(self, run: Making) -> Artifact:
        if self.joint is not None:
            return self._trained(run)
        seats, base, router, label = run.seats(self.slots), self.base(run), self._router(run), f"mixture {self.name}"
        settings = mixture_settings(
            {seat.name: seat.artifact.digest for seat in seats},
            zip(self.slots, slot_order(self.slots, seats), strict=True),
            self.router.settings,
            base=contents(base),
        )
        inputs = _inputs(base, seats) | {"tokenizer": run.tokenizer.digest} | ({"router": router.digest} if router else {})

        def build(folder: Path) -> None:
            from coterie.mixtures.adapters import adapter_gate_fits as fitting

            fitting.write_mixture(settings, seats, base, folder, router=router, tokenizer=run.tokenizer, label=label)

        return run.store.make(Action("mixtures", settings, inputs, ("torch", "transformers")), build, label=label)

    def _trained(self, run: Making) -> Artifact:
        """Fresh experts and gates trained together: a ``mixtures`` artifact that holds its experts, as PEFT adapter
        directories below ``experts/``. The facts say the held-out loss of each corpus before and after."""
        joint, base, tokenizer, label = self.joint, run.base, run.tokenizer, f"mixture {self.name}"
        assert joint is not None
        blocks = [run.blocks(name, "train") for name in joint.corpora]
        valid = {name: run.blocks(name, "valid") for name in joint.corpora}
        train = joint.train.model_copy(update={"tokens": joint.tokens})
        where = device.pick()
        precision = device.precision(train.precision, where)
        shares = [w / sum(joint.corpora.values()) for w in joint.corpora.values()]
        fixed = {"shares": shares, "train": train.identity()}
        common: Settings = {"router": self.router.model_dump(mode="json"), "names": list(self.names), "seed": run.seed}
        spec = {"joint": joint.model_dump(mode="json", exclude={"train", "corpora"}) | fixed, "valid": list(valid)}
        inputs = {"base": contents(base), "tokenizer": tokenizer.digest}
        inputs |= {f"blocks.{i}": b.content("blocks.safetensors") for i, b in enumerate(blocks)}
        inputs |= {f"valid.{i}": b.content("blocks.safetensors") for i, b in enumerate(valid.values())}
        libraries = ("torch", "transformers", "peft")
        action = Action("mixtures", spec | common, inputs, libraries, device.numerics(where, precision))

        def build(folder: Path) -> Figures:
            payload = common | {
                "joint": joint.model_dump(mode="json"),
                "shares": shares,
                "base": base,
                "blocks": blocks,
                "valid": valid,
                "tokenizer": tokenizer,
                "label": label,
                "where": where,
                "precision": precision,
                "home": str(run.store.scratch(action)),
                "folder": str(folder),
            }
            from coterie.mixtures.adapters import joint_training as training

            processes = ranks.wanted(train, where) if train.parallel else 1
            if getattr(self.router, "balance", 0) and train.batch_size % processes:
                raise RequestError(
                    "the balance loss is of a whole forward pass, which the processes cannot share evenly",
                    where="joint.train.processes",
                    expected=f"a divisor of batch_size, {train.batch_size}",
                    found=str(processes),
                    do="change batch_size or processes",
                )
            return ranks.run(partial(training.train_joint, payload), train, where, label)

        return run.store.make(action, build, label=label, tokens=joint.tokens)

    def _router(self, run: Making) -> Artifact | None:
        """The fitted gates, ``router.safetensors`` in a ``routers`` artifact; None where nothing is fitted."""
        seats, base, label = run.seats(self.slots), self.base(run), f"router of {self.name}"
        if isinstance(self.router, ClosedFormGate):
            return _closed_form(run, self.router, seats, base, label)
        train = self.router.training
        if train is None:
            return None
        distinct = {b.digest: b for b in (run.data(seat.name, "valid") for seat in seats)}
        blocks, where = list(distinct.values()), device.pick()
        precision = device.precision(train.precision, where)
        counts = [len(seat.slots) for seat in seats]
        action = Action(
            "routers",
            spec={self.router.kind: self.router.model_dump(mode="json"), "counts": counts, "seed": run.seed},
            inputs=_inputs(base, seats) | {f"blocks.{i}": b.content("blocks.safetensors") for i, b in enumerate(blocks)},
            libraries=("torch", "transformers"),
            numerics=device.numerics(where, precision),
        )

        def build(folder: Path) -> Figures:
            from coterie.mixtures.adapters import joint_training as training

            request = training.Run(
                base=base,
                sources=blocks,
                shares=None,
                train=train,
                gate=self.router,
                seed=run.seed,
                label=label,
                where=where,
                precision=precision,
                home=run.store.scratch(action),
            )
            return training.fit_gates(request, seats, folder)

        return run.store.make(action, build, label=label, tokens=train.tokens)


def _inputs(base: Artifact, seats: Sequence[Seat]) -> dict[str, str]:
    return {"base": contents(base)} | {f"experts.{u}": contents(seat.artifact) for u, seat in enumerate(seats)}


def _closed_form(run: Making, gate: ClosedFormGate, seats: Sequence[Seat], base: Artifact, label: str) -> Artifact:
    """Rows [U, H] of every gate from running sums over what it reads of held-out data of each expert.

    The sums of each expert are artifacts of their own: with one expert more, those of the others are found.
    """
    targets = sorted({canonical_json(seat.targets) for seat in seats})  # they decide what a layer's gate reads
    where, sums = device.pick(), list[Artifact]()
    blocks = [run.data(seat.name, "valid", gate.tokens) for seat in seats]
    for u, (seat, block) in enumerate(zip(seats, blocks, strict=True)):
        action = Action(
            "routers",
            spec={"sums": {"scope": gate.scope, "reads": gate.reads}},
            inputs={
                "base": contents(base),
                "expert": contents(seat.artifact),
                "targets": digest(targets),
                "blocks": block.content("blocks.safetensors"),
            },
            libraries=("torch", "transformers"),
            numerics=device.numerics(where, run.precision),
        )

        def count(folder: Path, u: int = u, block: Artifact = block) -> None:
            from coterie.mixtures.adapters import adapter_gate_fits as fitting

            fitting.write_sums(gate, seats, u, base, block, where, run.precision, folder)

        sums.append(run.store.make(action, count, label=f"{label}: what its gates read of {seat.name}"))
    action = Action(
        "routers",
        spec={gate.kind: gate.model_dump(mode="json", exclude=_LATER | {"tokens"})},
        inputs={f"sums.{u}": s.content("sums.safetensors") for u, s in enumerate(sums)},
        libraries=("torch",),
        numerics="cpu-fp64",
    )

    def build(folder: Path) -> None:
        from coterie.mixtures.adapters import adapter_gate_fits as fitting

        fitting.write_closed_form(sums, gate, folder)

    return run.store.make(action, build, label=label)
