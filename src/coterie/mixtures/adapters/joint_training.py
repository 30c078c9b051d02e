"""Training gates alone, or experts and gates together, with the one training loop.

Experts in training collaborate: for the first share of the steps all of them answer every token, so that none is starved
before it has learned something. Then the router's policy selects. After the first steps every expert and every gate must
have had a gradient; a part that has none is said and nothing is published.

Shapes: B rows, T positions, U experts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from coterie.corpora.blocks import Blocks
from coterie.corpora.order import Order
from coterie.errors import RequestError, WorkError
from coterie.experts import expert_training as outcome
from coterie.experts import ranks
from coterie.experts.loop import Loop
from coterie.experts.scores import mean_nll
from coterie.experts.train_settings import Train
from coterie.experts.training import Job, prepared, seen, train_job
from coterie.experts.training_rows import Rows, require_fit
from coterie.mixtures.adapters import adapter_gate_fits as fitting
from coterie.mixtures.adapters.adapter_routers import AdapterGate, Joint, mixture_settings
from coterie.mixtures.adapters.adapters_files import AdaptersConfig
from coterie.mixtures.adapters.adapters_mixture import AdaptersMixture
from coterie.mixtures.mixture_files import write_configuration, write_router
from coterie.mixtures.seats import Seat, say_shared
from coterie.models import lora_files as files
from coterie.models import parameters
from coterie.models.checkpoint import contents
from coterie.models.device import Precision
from coterie.models.open import open_model
from coterie.models.stack import moments
from coterie.progress import say
from coterie.routing.gates import auxiliary
from coterie.spec.json_types import Figures, Settings
from coterie.store import Artifact

FIRST = 8
"""Steps after which every part that trains must have had a gradient."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of gates, or of experts and gates."""

    base: Artifact
    sources: Sequence[Artifact]
    shares: list[float] | None
    """Of the tokens, for each source; None: equal."""
    train: Train
    gate: AdapterGate
    seed: int
    label: str
    where: str
    precision: Precision
    home: Path
    """Where checkpoints go."""


def fit_gates(run: Run, seats: Sequence[Seat], folder: Path) -> Figures:
    """Train the gates of finished experts."""
    slots = ((name, u) for u, seat in enumerate(seats) for name in seat.slots)
    settings = mixture_settings({seat.name: None for seat in seats}, slots, run.gate.settings)
    with prepared(run.train.threads, run.seed) as threads:
        base = open_model(run.base, device=run.where)
        places = files.linears(base)
        config = AdaptersConfig.on_base(settings, run.base.path)
        model = AdaptersMixture(config, base, [files.read(s.artifact.path, places) for s in seats])
        if len(seats) < 2:
            raise RequestError("a router of one expert has nothing to learn", where=run.label, do="seat another expert")
        _start_gates(model, run.seed)
        model.trainable(router=True)
        say_shared(run.label, seats, "share its weight")
        loop = _train(run, model, dense_steps=0.0)
        write_router(model.gates(), folder)
        _record(run, loop, model, folder, {})
    return {"threads": threads, "device": run.where}


def train_joint(payload: Settings) -> Figures:
    """Train fresh experts and their gates, on one rank or as one of several.

    Args:
        payload: from `coterie.mixtures.adapters.adapters_place.AdaptersPlace`.
    """
    joint, names, folder = Joint.model_validate(payload["joint"]), payload["names"], Path(payload["folder"])
    run = Run(
        base=payload["base"],
        sources=payload["blocks"],
        shares=payload["shares"],
        train=joint.train.model_copy(update={"tokens": joint.tokens}),
        gate=AdapterGate.model_validate(payload["router"]),
        home=Path(payload["home"]),
        **{key: payload[key] for key in ("seed", "label", "where", "precision")},
    )
    settings = mixture_settings(
        dict.fromkeys(names),
        ((name, u) for u, name in enumerate(names)),
        run.gate.settings,
        base=contents(run.base),
        maturity="training",
    )
    lora = joint.lora
    with prepared(run.train.threads, run.seed) as threads:
        base = open_model(run.base, device=run.where)
        places = files.linears(base)
        fresh = [files.fresh(places, lora.targets, lora.r, lora.alpha, run.seed * 1000 + u) for u in range(len(names))]
        config = AdaptersConfig.on_base(settings, run.base.path)
        model = AdaptersMixture(config, base, fresh, dropout=lora.dropout)
        _start_gates(model, run.seed)
        model.trainable(None, router=True)
        held_out = {name: Blocks.open(blocks) for name, blocks in payload["valid"].items()}
        before = {name: mean_nll(model.base, blocks) for name, blocks in held_out.items()}
        loop = _train(run, model, dense_steps=joint.dense)
        for name in names:
            config.experts[names.index(name)]["maturity"] = "mature"
        model.trainable(names)  # laid out for who is mature
        after = {name: mean_nll(model.base, blocks) for name, blocks in held_out.items()}
        for name in held_out:
            say(f"  {run.label}: {name} {before[name]:.4f} -> {after[name]:.4f} nats a token on held-out documents")
        if ranks.first():
            model.save_parts(folder)
            for name in names:
                facts = {"kind": "lora", "base": contents(run.base), "trained_together": list(names)}
                (folder / "experts" / name / "facts.json").write_text(json.dumps(facts, sort_keys=True) + "\n")
            config.use_cache = True
            write_configuration(config, payload["tokenizer"].path, folder)
            _record(run, loop, model, folder, {"before": before, "after": after})
            fitting.say_counts(run.label, model.counts())
    return {"threads": threads, "device": run.where, "processes": ranks.count()}


def _start_gates(model: AdaptersMixture, seed: int) -> None:
    """Small random rows: near even weights, no two gates or experts alike."""
    draw = torch.Generator().manual_seed(seed)
    U = len(model.names)
    model.set_gates({n: torch.randn(U, h, generator=draw) * 0.02 for n, h in model.layout.sizes.items()})


def _train(run: Run, model: AdaptersMixture, dense_steps: float) -> Loop:
    """One run of the loop over what is set trainable, checked."""
    settings = run.train
    sources = [Blocks.open(source) for source in run.sources]
    for blocks in sources:
        require_fit(model.base, blocks)
    shares = run.shares if run.shares is not None else [1.0] * len(sources)
    order = Order([s.tokens_per_block for s in sources], shares, run.seed, tokens=settings.tokens)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    before = parameters.fingerprints(model)
    job = Job(
        home=run.home,
        output=run.home,
        model=model,
        rows=Rows(sources, order, mask=False),
        train=settings,
        where=run.where,
        precision=run.precision,
        seed=run.seed,
        label=run.label,
        loss=Loss(run.gate.model_dump()),
        sparse=True,
        callbacks=[FirstSteps(model, dense_steps, run.label)],
    )
    loop = train_job(job)
    model.router.collaborate(False)
    require_gradients(model, loop.optimizer, run.label)
    outcome.check_moved(loop, before)
    model.eval()
    return loop


def _record(run: Run, loop: Loop, model: AdaptersMixture, folder: Path, more: Figures) -> None:
    """What was trained, on how much, with what loss."""
    tokens = seen(loop)
    lines = outcome.log(loop, tokens)
    facts = {
        "tokens": int(tokens[loop.state.global_step - 1]),
        "steps": loop.state.global_step,
        "loss": next((line["loss"] for line in reversed(lines) if "loss" in line), None),
        "precision": run.precision,
        "parameters": model.counts(),
        **more,
    }
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


class Loss:
    """Negative log-likelihood and the auxiliary losses of every gate, as a share of the whole optimizer step.

    Balance, z-loss and entropy are taken of each gate by itself and over distinct experts, at the tokens that count: padding
    and prompts have no part in them. Each batch counts by its share of the step's tokens, so accumulation changes nothing
    that is linear in tokens.
    """

    def __init__(self, gate: Settings) -> None:
        self.by = {f"{name}_by": gate.get(name, 0.0) for name in ("balance", "z", "entropy")}

    def __call__(self, model: Any, batch: Mapping[str, Tensor], items: Tensor) -> Tensor:
        labels_BT = batch["labels"][:, 1:]
        given = {k: v for k, v in batch.items() if k in ("input_ids", "position_ids", "attention_mask")}
        with getattr(model, "module", model).traced() as trace:  # several ranks wrap it
            logits_BTV = model(**given).logits[:, :-1]
            gates = list(trace().values())
        nll = cross_entropy(logits_BTV.flatten(0, 1).float(), labels_BT.flatten(), ignore_index=-100, reduction="sum")
        if not any(self.by.values()):
            return nll / items
        counted_BT = torch.nn.functional.pad(labels_BT != -100, (0, 1))
        U = gates[0].weight_NS.shape[-1]
        own_U = torch.arange(U, device=counted_BT.device)
        return (nll + counted_BT.sum() * auxiliary(gates, own_U, U, counted_BT, **self.by)) / items


class FirstSteps(TrainerCallback):
    """All experts answer in the first share of the steps; decided from the step alone, so a resumed run does the same. Stops
    where something that should learn has had no gradient in the first steps."""

    def __init__(self, model: AdaptersMixture, share: float, label: str) -> None:
        self.model, self.share, self.label = model, share, label

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        self.model.router.collaborate(state.global_step < self.share * state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: object) -> None:
        if state.global_step == FIRST:
            optimizer = given["optimizer"]
            assert isinstance(optimizer, torch.optim.Optimizer)
            require_gradients(self.model, getattr(optimizer, "optimizer", optimizer), self.label)


def require_gradients(model: AdaptersMixture, optimizer: torch.optim.Optimizer, label: str) -> None:
    """Every expert and every gate that trains has had a gradient: AdamW's first moment is nowhere all zero.

    Raises:
        WorkError: names the part.
    """
    learned: dict[str, bool] = {}
    gate_of = {i: gate for gate, i in model.layout.hosted.items()}
    for i, inlet in enumerate(model.layout.inlets):
        for part, alive in moments(inlet, optimizer).items():
            name = f"the gate {gate_of[i]}" if isinstance(part, str) else f"expert {model.names[model.running[part]]!r}"
            learned[name] = learned.get(name, False) or alive
    whole = model.router.rows_UH
    if whole is not None and whole.requires_grad:
        learned["the gate"] = bool(optimizer.state.get(whole, {}).get("exp_avg", torch.zeros(1)).any())
    dead = [name for name, alive in learned.items() if not alive]
    if dead:
        raise WorkError(
            f"{label}: {dead[0]} has had no gradient, so it would not learn",
            where=", ".join(dead[:4]),
            kept="nothing of this run is published; everything finished before it is",
            do="raise joint.dense or router.balance, or lower the number of experts",
        )
