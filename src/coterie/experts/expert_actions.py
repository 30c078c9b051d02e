"""The verbs: train one expert once, score it once.

Each states what decides its result (the action); only if the store lacks that does it import torch and transformers, so that
a run that finds everything is quick.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from coterie.errors import RequestError
from coterie.experts.expert_settings import ExpertKind
from coterie.experts.train_settings import Train
from coterie.experts.training_request import Request, snapshot
from coterie.launch import on_ranks
from coterie.models import device
from coterie.models.checkpoint import contents
from coterie.models.lora_settings import Lora
from coterie.spec.json_types import Figures
from coterie.store import Action, Artifact, Store


def train_expert(
    store: Store,
    *,
    start: Artifact,
    blocks: Sequence[Artifact],
    weights: Sequence[float] | None = None,
    valid: Artifact | None = None,
    kind: ExpertKind = "full",
    train: Train,
    lora: Lora | None = None,
    seed: int,
    base: Artifact | None = None,
    label: str = "expert",
) -> Artifact:
    """An expert: a Hugging Face model directory (``full``, ``ffn``) or a PEFT adapter directory (``lora``).

    Args:
        start: the weights to start from; an adapter needs the ``base`` it rests on, and can only be trained on as ``lora``.
        blocks: training blocks, one artifact a source.
        weights: share of the tokens of each source; by default in proportion to their sizes.
        valid: held-out blocks: the loss in the facts, and early stopping.
        kind: train all weights, the feed-forward ones, or an adapter with settings ``lora``.
        train: budget, optimizer, schedule.
        seed: of the order of the data, dropout and an adapter's start.

    Returns:
        an ``experts`` artifact. With ``train.snapshots`` its facts list the snapshots, artifacts of their own.

    Raises:
        RequestError: the request cannot be met.
        WorkError: the run diverged, or a parameter did not do what it was declared to; nothing is published.
    """
    if train.early_stopping is not None and valid is None:
        raise RequestError(
            "early stopping needs held-out data", where="train.early_stopping", do="give the corpus a valid split"
        )
    assert (lora is None) or kind == "lora"
    lora = (lora or Lora()) if kind == "lora" else None
    where = device.pick()
    precision = device.precision(train.precision, where)
    shares = [w / sum(weights) for w in weights] if weights is not None and len(blocks) > 1 else None
    spec = {
        "kind": kind,
        "train": train.identity(),
        "lora": lora.model_dump(mode="json") if lora else None,
        "seed": seed,
        "weights": shares,
    }
    inputs = {"start": contents(start)}
    inputs |= {f"blocks.{i}": source.content("blocks.safetensors") for i, source in enumerate(blocks)}
    inputs |= {"valid": valid.content("blocks.safetensors")} if valid else {}
    inputs |= {"base": contents(base)} if base else {}
    libraries = ("torch", "transformers", "peft") if lora else ("torch", "transformers")
    action = Action("experts", spec, inputs, libraries, device.numerics(where, precision))

    request = Request(
        store=store,
        action=action,
        start=start,
        base=base,
        sources=tuple(blocks),
        weights=shares,
        valid=valid,
        kind=kind,
        train=train,
        lora=lora,
        seed=seed,
        label=label,
        where=where,
        precision=precision,
    )
    made = store.make(action, partial(_train, request), label=label, tokens=train.tokens)
    if train.snapshots and not made.planned:
        for entry in made.facts["snapshots"]:  # a run that reuses the expert rests on its snapshots too
            earlier = snapshot(action, entry["step"])
            if found := store.find(earlier, f"{label} at {entry['tokens']:,} tokens"):
                store.used.setdefault(earlier.key, found)
    return made


def _train(request: Request, folder: Path) -> Figures:
    """Train, check, write into ``folder``; returns what the record says of the making."""
    from coterie.experts import ranks
    from coterie.experts.expert_training import ExpertTraining
    from coterie.experts.training import prepared, watched

    train = request.train
    if train.parallel and ranks.count() == 1:
        payload = {"request": request.payload(), "folder": str(folder)}
        processes = ranks.wanted(train, request.where)
        return on_ranks("coterie.experts.expert_actions:train_on_rank", payload, processes=processes, label=request.label)
    with prepared(train.threads, request.seed) as threads:
        training = ExpertTraining(request)
        with watched(training.job) as loop:
            loop.train(resume_from_checkpoint=loop.checkpoint)
        training.write(loop, folder)
    return {"threads": threads, "device": request.where}


def train_on_rank(payload: Figures) -> Figures:
    """The same on one of several ranks; the first one writes."""
    from coterie.experts import ranks

    made = _train(Request.of(payload["request"]), Path(payload["folder"]))
    return made | {"processes": ranks.count()}


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
