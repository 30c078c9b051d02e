"""The verbs: train one expert once, score it once.

Each states what decides its result (the action); only if the store lacks that does it import torch and transformers, so that
a run that finds everything is quick.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from coterie.experts import ranks
from coterie.experts.training_request import Request
from coterie.models import device
from coterie.models.checkpoint import contents
from coterie.spec.json_types import Figures
from coterie.store import Action, Artifact, Store


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
    store: Store, expert: Artifact, blocks: Artifact, *, base: Artifact | None = None, label: str = "scores"
) -> Artifact:
    """log P(ids[t+1] | its document up to t), fp32, of each block in the blocks' own order.

    Args:
        expert: a model directory, or an adapter with the ``base`` it rests on.
        blocks: the blocks to score.

    Returns:
        a ``scores`` artifact: ``logp`` [N, T-1] in nats, 0 where a document's first token or padding stands; facts
        ``tokens`` (targets) and ``nll`` (nats a target).
    """
    where = device.pick()
    inputs = {"expert": contents(expert), "blocks": blocks.content("blocks.safetensors")}
    inputs |= {"base": contents(base)} if base else {}
    libraries = ("torch", "transformers", "peft") if base else ("torch", "transformers")
    action = Action("scores", {}, inputs, libraries, device.numerics(where, "fp32"))

    def build(folder: Path) -> Figures:
        from coterie.experts.scores import write_scores

        return write_scores(expert, blocks, base, where, label, folder)

    return store.make(action, build, label=label)
