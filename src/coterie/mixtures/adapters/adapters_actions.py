"""The verbs of mixtures of adapters: fit a router, assemble, train together, score, put where a person looks for it.

Each states what decides its result (the action); only if the store lacks that does it import torch and transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coterie.errors import RequestError
from coterie.launch import on_ranks
from coterie.mixtures.adapters.adapter_routers import AdapterGate, ClosedFormGate, Joint, mixture_settings
from coterie.mixtures.seats import Seat, slot_order
from coterie.models import device
from coterie.models.checkpoint import contents
from coterie.spec.digest import canonical_json, digest
from coterie.store import Action, Artifact, Store, link_tree

_LATER = {"top_k", "top_p", "temperature"}
"""Settings of a closed form that its fit does not depend on."""


def _inputs(base: Artifact, seats: Sequence[Seat]) -> dict[str, str]:
    experts = {f"experts.{u}": contents(seat.artifact) for u, seat in enumerate(seats)}
    return {"base": contents(base)} | experts


def fit_closed_form(
    store: Store, *, gate: ClosedFormGate, seats: Sequence[Seat], base: Artifact, blocks: Sequence[Artifact], label: str
) -> Artifact:
    """Rows of every gate from running sums over what it reads.

    The running sums of each expert are artifacts of their own: with one expert more, those of the others are found.

    Args:
        blocks: held-out data of each seat.

    Returns:
        a ``routers`` artifact: ``router.safetensors`` with rows [U, H] of each gate, by name.
    """
    reads = {"scope": gate.scope, "reads": gate.reads}
    targets = sorted({canonical_json(seat.targets) for seat in seats})  # they decide what a layer's gate reads
    where = device.pick()
    sums = []
    for u, (seat, block) in enumerate(zip(seats, blocks, strict=True)):
        action = Action(
            "routers",
            spec={"sums": reads},
            inputs={
                "base": contents(base),
                "expert": contents(seat.artifact),
                "targets": digest(targets),
                "blocks": block.content("blocks.safetensors"),
            },
            libraries=("torch", "transformers"),
            numerics=device.numerics(where, "fp32"),
        )

        def count(folder: Path, u: int = u, block: Artifact = block) -> None:
            from coterie.mixtures.adapters import adapter_gate_fits as fitting

            fitting.write_sums(gate, seats, u, base, block, where, folder)

        sums.append(store.make(action, count, label=f"{label}: what its gates read of {seat.name}"))
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

    return store.make(action, build, label=label)


def fit_learned(
    store: Store,
    *,
    gate: AdapterGate,
    seats: Sequence[Seat],
    base: Artifact,
    blocks: Sequence[Artifact],
    seed: int,
    label: str,
) -> Artifact:
    """Gates trained on the language-model loss of held-out data; experts and base stay as they are, bit by bit.

    Args:
        blocks: what to train on, in equal parts.

    Returns:
        a ``routers`` artifact with ``router.safetensors``, ``metrics.jsonl`` and ``facts.json``.

    Raises:
        WorkError: the run diverged, or a gate had no gradient; nothing is published.
    """
    train = gate.training
    assert train is not None
    where = device.pick()
    precision = device.precision(train.precision, where)
    counts = [len(seat.slots) for seat in seats]
    action = Action(
        "routers",
        spec={gate.kind: gate.model_dump(mode="json"), "counts": counts, "seed": seed},
        inputs=_inputs(base, seats) | {f"blocks.{i}": b.content("blocks.safetensors") for i, b in enumerate(blocks)},
        libraries=("torch", "transformers"),
        numerics=device.numerics(where, precision),
    )

    def build(folder: Path) -> Mapping[str, Any]:
        from coterie.mixtures.adapters import joint_training as training

        run = training.Run(
            base=base,
            sources=blocks,
            shares=None,
            train=train,
            gate=gate,
            seed=seed,
            label=label,
            where=where,
            precision=precision,
            home=store.scratch(action),
        )
        return training.fit_gates(run, seats, folder)

    return store.make(action, build, label=label, tokens=train.tokens)


def train_joint(
    store: Store,
    *,
    joint: Joint,
    router: AdapterGate,
    names: Sequence[str],
    base: Artifact,
    blocks: Sequence[Artifact],
    valid: Mapping[str, Artifact],
    tokenizer: Artifact,
    seed: int,
    label: str,
) -> Artifact:
    """Fresh experts and gates trained together.

    Args:
        blocks: training data, in the order of ``joint.corpora``.
        valid: held-out data by corpus: its loss before and after goes into the facts.

    Returns:
        a ``mixtures`` artifact that holds its experts, as PEFT adapter directories below ``experts/``.
    """
    train = joint.train.model_copy(update={"tokens": joint.tokens})
    where = device.pick()
    precision = device.precision(train.precision, where)
    shares = [w / sum(joint.corpora.values()) for w in joint.corpora.values()]
    spec = {
        "joint": joint.model_dump(mode="json", exclude={"train", "corpora"}) | {"shares": shares, "train": train.identity()},
        "router": router.model_dump(mode="json"),
        "names": list(names),
        "valid": list(valid),
        "seed": seed,
    }
    inputs = {"base": contents(base), "tokenizer": tokenizer.digest}
    inputs |= {f"blocks.{i}": b.content("blocks.safetensors") for i, b in enumerate(blocks)}
    inputs |= {f"valid.{i}": b.content("blocks.safetensors") for i, b in enumerate(valid.values())}
    libraries = ("torch", "transformers", "peft")
    action = Action("mixtures", spec, inputs, libraries, device.numerics(where, precision))

    def build(folder: Path) -> Mapping[str, Any]:
        payload = {
            "joint": joint.model_dump(mode="json"),
            "router": router.model_dump(mode="json"),
            "names": list(names),
            "shares": shares,
            "base": base.said(),
            "blocks": [b.said() for b in blocks],
            "valid": {name: b.said() for name, b in valid.items()},
            "tokenizer": tokenizer.said(),
            "seed": seed,
            "label": label,
            "where": where,
            "precision": precision,
            "home": str(store.scratch(action)),
            "folder": str(folder),
        }
        if train.parallel is None:
            from coterie.mixtures.adapters import joint_training as training

            return training.train_joint(payload)
        from coterie.experts import ranks

        processes = ranks.wanted(train, where)
        if getattr(router, "balance", 0) and train.batch_size % processes:
            raise RequestError(
                "the balance loss is of a whole forward pass, which the processes cannot share evenly",
                where="joint.train.processes",
                expected=f"a divisor of batch_size, {train.batch_size}",
                found=str(processes),
                do="change batch_size or processes",
            )
        return on_ranks("coterie.mixtures.adapters.joint_training:train_joint", payload, processes=processes, label=label)

    return store.make(action, build, label=label, tokens=joint.tokens)


def assemble(
    store: Store,
    *,
    gate: AdapterGate,
    slots: Sequence[str],
    seats: Sequence[Seat],
    base: Artifact,
    router: Artifact | None,
    tokenizer: Artifact,
    label: str,
) -> Artifact:
    """A mixture of finished experts.

    Args:
        router: the fitted gates; None for `uniform` and `arrow`, which is made here.

    Raises:
        RequestError: an expert does not fit the base, or is not whole.
    """
    settings = mixture_settings(
        {seat.name: seat.artifact.digest for seat in seats},
        zip(slots, slot_order(slots, seats), strict=True),
        gate.settings,
        base=contents(base),
    )
    inputs = _inputs(base, seats) | {"tokenizer": tokenizer.digest} | ({"router": router.digest} if router else {})

    def build(folder: Path) -> None:
        from coterie.mixtures.adapters import adapter_gate_fits as fitting

        fitting.write_mixture(settings, seats, base, folder, router=router, tokenizer=tokenizer, label=label)

    return store.make(Action("mixtures", settings, inputs, libraries=("torch", "transformers")), build, label=label)


def scores(
    store: Store, mixture: Artifact, seats: Sequence[Seat], base: Artifact, blocks: Artifact, *, label: str
) -> Artifact:
    """A mixture's log-probabilities on blocks and who was used; see `coterie.mixtures.score_files`. Weights are means over
    gates."""
    where = device.pick()
    inputs = {"mixture": mixture.digest, "blocks": blocks.content("blocks.safetensors", "documents.parquet")}
    action = Action("scores", {"of": "adapters"}, inputs, ("torch", "transformers"), numerics=device.numerics(where, "fp32"))

    def build(folder: Path) -> None:
        from coterie.mixtures.adapters import adapter_gate_fits as fitting

        fitting.write_scores(mixture, seats, base, blocks, folder, where, label)

    return store.make(action, build, label=label)


def materialise(mixture: Artifact, seats: Sequence[Seat], base: Artifact, target: Path) -> Path:
    """A mixture directory at ``target`` that opens by itself: its files, every expert's and the base's, linked."""
    return link_tree(mixture, target, {"base": base} | {f"experts/{seat.name}": seat.artifact for seat in seats})


def inside(mixture: Artifact) -> list[tuple[str, str]]:
    """Name and digest of the experts that a mixture holds itself, as joint ones are."""
    names = [e["name"] for e in json.loads(mixture.file("config.json").read_text())["experts"]]
    return [(name, digest({f: h for f, h in mixture.files.items() if f.startswith(f"experts/{name}/")})) for name in names]
