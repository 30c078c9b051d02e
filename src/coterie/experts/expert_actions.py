"""The verbs: train one expert once, take up one that was made elsewhere, score one once.

Each states what decides its result (the action); only if the store lacks that does it import torch and transformers, so that
a run that finds everything is quick.
"""

from __future__ import annotations

import json
import math
import shutil
from functools import partial
from pathlib import Path

from coterie.errors import RequestError
from coterie.experts import ranks
from coterie.experts.training_request import Request
from coterie.models import device
from coterie.models.checkpoint import checkpoint, contents, require_same_base
from coterie.spec.digest import digest
from coterie.spec.json_types import Figures
from coterie.store import Action, Artifact, Store, sha256
from coterie.store.admit import admit

FILES = ("adapter_config.json", "adapter_model.safetensors")


def adopt(store: Store, folder: str | Path, base: Artifact, *, label: str) -> Artifact:
    """An ``experts`` artifact of kind ``lora`` with the adapter's weights as they are.

    Args:
        folder: a PEFT adapter directory.
        base: what it is to rest on. If the adapter says which base it was trained on (``facts.json``), it must be this one.

    Raises:
        RequestError: it is no whole, finite LoRA adapter of this base.
    """
    folder = Path(folder).expanduser()
    for name in FILES:
        if not (folder / name).is_file():
            raise RequestError("no adapter is here", where=str(folder), expected=name, do="correct the expert's adapter")
    admit(folder)
    require_same_base(folder, base)
    files = {name: sha256(folder / name) for name in FILES}
    action = Action("experts", {"adopted": True}, {"adapter": digest(files), "base": contents(base)}, ("peft",))

    def build(target: Path) -> None:
        from coterie.models import lora_files
        from coterie.models.initialise import copy_tokenizer
        from coterie.models.open import open_model

        model = open_model(base)
        adapter = lora_files.read(folder, lora_files.linears(model))
        for name in FILES:
            shutil.copyfile(folder / name, target / name)
        copy_tokenizer(base.path, target)
        trained = sum(f.A_RI.numel() + f.B_OR.numel() for f in adapter.values())
        total = trained + sum(p.numel() for p in model.parameters())
        _write_figures(target, "lora", contents(base), total, trained)

    return store.make(action, build, label=label)


def adopt_model(store: Store, folder: str | Path, *, kind: str, label: str) -> Artifact:
    """An ``experts`` artifact with the weights of a finished Hugging Face model directory as they are; RequestError if that
    is no whole, finite, safe model."""
    found = checkpoint(folder)
    action = Action("experts", {"adopted": True, "kind": kind}, {"model": contents(found)})

    def build(target: Path) -> None:
        from safetensors import safe_open

        count = 0
        for name in found.files:
            shutil.copyfile(found.file(name), target / name)
            if name.endswith(".safetensors"):
                with safe_open(found.file(name), framework="numpy") as file:
                    count += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        _write_figures(target, kind, None, count, 0)

    return store.make(action, build, label=label)


def _write_figures(target: Path, kind: str, base: str | None, parameters: int, trained: int) -> None:
    """The figures that a trained expert has, of one for which nothing was trained here, and an empty log."""
    unknown = {"tokens": 0, "steps": 0, "loss": None, "precision": None}
    facts = {"kind": kind, **unknown, "start": base, "base": base, "parameters": parameters, "trained_parameters": trained}
    (target / "metrics.jsonl").write_text("")
    (target / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


def train_expert(request: Request) -> Artifact:
    """An expert: a Hugging Face model directory (``full``, ``ffn``) or a PEFT adapter directory (``lora``).

    Returns:
        an ``experts`` artifact. With ``train.snapshots`` its facts list the snapshots, artifacts of their own.

    Raises:
        RequestError: the request cannot be met.
        WorkError: the run diverged, or a parameter did not do what it was declared to; nothing is published.
    """
    store, train, label = request.store, request.train, request.label
    made = store.make(request.action, partial(_train, request), label=label, tokens=train.tokens)
    if train.snapshots and not made.planned:
        for entry in made.facts["snapshots"]:  # a run that reuses the expert rests on its snapshots too
            earlier = request.snapshot(entry["step"])
            if found := store.find(earlier, f"{label} at {entry['tokens']:,} tokens"):
                store.used.setdefault(earlier.key, found)
    return made


def _train(request: Request, folder: Path) -> Figures:
    """Train, check, write into ``folder``; returns what the record says of the making."""
    from coterie.experts.expert_training import ExpertTraining
    from coterie.experts.training import prepared, watched

    if request.train.parallel and ranks.count() == 1:
        return ranks.run(partial(_train, request, folder), request.train, request.where, request.label)
    with prepared(request.train.threads, request.seed) as threads:
        training = ExpertTraining(request)
        with watched(training.job) as loop:
            loop.train(resume_from_checkpoint=loop.checkpoint)
        training.write(loop, folder)
    return {"threads": threads, "device": request.where}


def score_expert(
    store: Store,
    expert: Artifact,
    blocks: Artifact,
    *,
    base: Artifact | None = None,
    precision: device.Precision = "fp32",
    label: str = "scores",
) -> Artifact:
    """log P(ids[t+1] | its document up to t), fp32, of each block in the blocks' own order.

    Args:
        expert: a model directory, or an adapter with the ``base`` it rests on.
        blocks: the blocks to score.
        precision: of the weights and of what they are multiplied with; sums and log-softmax are in fp32.

    Returns:
        a ``scores`` artifact: ``logp`` [N, T-1] in nats, 0 where a document's first token or padding stands; facts
        ``tokens`` (targets) and ``nll`` (nats a target).
    """
    where = device.pick()
    inputs = {"expert": contents(expert), "blocks": blocks.content("blocks.safetensors")}
    inputs |= {"base": contents(base)} if base else {}
    libraries = ("torch", "transformers", "peft") if base else ("torch", "transformers")
    action = Action("scores", {}, inputs, libraries, device.numerics(where, precision))

    def build(folder: Path) -> Figures:
        from coterie.experts.scores import write_scores

        return write_scores(expert, blocks, base, where, precision, label, folder)

    return store.make(action, build, label=label)
