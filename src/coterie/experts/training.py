"""One training run, whatever it trains: the one place where a training loop is configured.

It is transformers' Trainer; its checkpoints and callbacks are in `loop`. The Trainer's defaults that would change a result
without a word are set here, each with its reason.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainingArguments

from coterie.errors import RequestError
from coterie.experts import ranks, training_checkpoints
from coterie.experts.loop import Calendar, Interrupt, Loop, Seeds, StopEarly, Watch, require_finite
from coterie.experts.train_settings import Train
from coterie.experts.training_rows import Loss, Rows
from coterie.models import device
from coterie.models.quiet import quiet, seeded
from coterie.progress import bar, say


def factor(step: int, steps: int, train: Train) -> float:
    """Share of the peak learning rate at ``step`` of ``steps`` (from 0).

    Warm-up of W steps rises in a straight line and reaches the peak at step W; it does not start at zero, so that no
    step is wasted. ``cosine`` falls to ``floor`` at ``steps``, ``linear`` to zero; ``wsd`` stays at the peak and falls in a
    straight line to ``floor`` over the last ``decay`` share.
    """
    warm = round(train.warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    if train.schedule == "constant":
        return 1.0
    begin = max(steps - round(train.decay * steps), warm) if train.schedule == "wsd" else warm
    progress = min(max(step - begin, 0) / max(steps - begin, 1), 1.0)
    if train.schedule == "linear":
        return 1.0 - progress
    if train.schedule == "cosine":
        progress = (1.0 - math.cos(math.pi * progress)) / 2
    return 1.0 - (1.0 - train.floor) * progress


def optimizer(model: nn.Module, train: Train) -> torch.optim.AdamW:
    """Fused AdamW over what is trainable; weight decay on matrices only, not on norms and biases."""
    moving = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in moving if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in moving if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=train.learning_rate, betas=(train.beta1, train.beta2), fused=True
    )


@dataclass
class Job:
    """One training run; `coterie.experts.training.train_job` runs it.

    Attributes:
        home: where checkpoints go, and where one that is found is gone on from (``store.scratch(action)``).
        output: where tracking backends write.
        loss: None: the model's own, from its labels.
        held_out: nats a token, for early stopping.
        snapshot: called after each of ``train.snapshots`` with the loop and the tokens seen.
        callbacks: of the Trainer, besides those that watch every run.
        sparse: some trainable parameters take no part in some steps; their optimizer state then stays as it is.
    """

    home: Path
    output: Path
    model: nn.Module
    rows: Rows
    train: Train
    where: str
    precision: device.Precision
    seed: int
    label: str
    loss: Loss | None = None
    held_out: Callable[[], float] | None = None
    snapshot: Callable[[Loop, int], None] | None = None
    callbacks: Sequence[TrainerCallback] = ()
    sparse: bool = False


def arguments(job: Job, steps: int) -> TrainingArguments:
    """The Trainer's settings for ``steps`` optimizer steps."""
    train, count = job.train, ranks.count()
    if count > 1 and train.parallel is None:
        raise _overruled(["processes"], {"processes": 1}, {"processes": count})
    batch_size = ranks.batch_size(train)
    return TrainingArguments(
        output_dir=str(job.output),
        max_steps=steps,  # one pass over the order: the Trainer's epochs never restart it
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=train.batch_size * train.accumulation // (batch_size * count),
        train_sampling_strategy="sequential",  # the order is shuffled already
        max_grad_norm=train.clip,
        bf16=job.precision == "bf16",
        use_cpu=job.where == "cpu",
        seed=job.seed % 2**32,
        logging_steps=train.log_every,
        logging_nan_inf_filter=False,  # its default logs a diverged run's loss as 0.0 and goes on
        label_smoothing_factor=0.0,  # it would take the labels from the model, and with them loss and shift
        use_cache=False,  # with a cache, packed documents see each other
        remove_unused_columns=False,
        label_names=["labels"],
        save_strategy="no",  # ours, by tokens
        disable_tqdm=True,
        log_level="critical",
        report_to=list(train.report_to) or "none",
        run_name=job.label,
        dataloader_pin_memory=job.where == "cuda",
        ddp_backend=None if count == 1 else ("nccl" if job.where == "cuda" else "gloo"),
        ddp_find_unused_parameters=job.sparse,
    )


def require_effective(trainer: Trainer, job: Job) -> None:
    """The Trainer takes settings from the environment, and falls back from some that it cannot have: compare."""
    args, accelerator = trainer.args, trainer.accelerator
    effective: dict[str, object] = {
        "processes": args.world_size * max(args.n_gpu, 1),
        "distribution": str(accelerator.distributed_type.value),
        "device": args.device.type,
        "precision": accelerator.mixed_precision,
        "sequences": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
    }
    requested: dict[str, object] = {
        "processes": ranks.count(),
        "distribution": "NO" if ranks.count() == 1 else ("MULTI_GPU" if job.where == "cuda" else "MULTI_CPU"),
        "device": job.where,
        "precision": "bf16" if job.precision == "bf16" else "no",
        "sequences": job.train.batch_size * job.train.accumulation,
    }
    if wrong := [key for key in requested if requested[key] != effective[key]]:
        raise _overruled(wrong, requested, effective)


def _overruled(wrong: list[str], requested: dict[str, object], effective: dict[str, object]) -> RequestError:
    names = [name for name in os.environ if name.startswith("ACCELERATE_") or name == "WORLD_SIZE"]
    return RequestError(
        "the environment would change how the expert is trained",
        where=", ".join(wrong),
        expected=str({key: requested[key] for key in wrong}),
        found=str({key: effective[key] for key in wrong}),
        do=f"unset {', '.join(names)}; for several processes set train.parallel: ddp and start coterie once"
        if names
        else "make one device visible (CUDA_VISIBLE_DEVICES), or set train.parallel: ddp",
    )


@contextmanager
def prepared(threads: int, seed: int) -> Iterator[int]:
    """The threads (0: as many as before), random numbers and silence of a training run; gives the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    gc.freeze()  # the Trainer collects garbage on starting: half a second if every imported module is looked through
    try:
        with seeded(seed), quiet():
            yield torch.get_num_threads()
    finally:
        gc.collect()  # the Trainer and its model refer to each other; all that is older is frozen and not looked through
        gc.unfreeze()
        torch.set_num_threads(before)


def train_job(job: Job) -> Loop:
    """Train, going on from the newest checkpoint that verifies; the best weights are in the model when it returns.

    Raises:
        WorkError: a loss, a gradient or a weight is not finite.
        RequestError: the environment would change how it is trained.
    """
    with watched(job) as loop:
        loop.train(resume_from_checkpoint=loop.checkpoint)
    return loop


@contextmanager
def watched(job: Job) -> Iterator[Loop]:
    """The Trainer of a run and all that stands around it, to be trained inside from ``loop.checkpoint``. See `train_job`."""
    settings = job.train
    tokens = job.rows.tokens_after(settings.batch_size * settings.accumulation)
    if ranks.count() > 1:
        job.rows.pad(settings.batch_size * settings.accumulation)
    loop = _loop(job, len(tokens))

    def held_out() -> float:
        assert job.held_out is not None
        with loop.accelerator.autocast():
            return job.held_out()

    def snapshot(step: int) -> None:
        assert job.snapshot is not None
        if ranks.first():
            job.snapshot(loop, int(tokens[step - 1]))

    with bar(job.label, int(tokens[-1])) as progress, Interrupt() as interrupt:
        watch = Watch(loop, every=1 if job.where == "cpu" else 20)
        calendar = Calendar(tokens, progress, settings.save_every, settings.snapshots, snapshot)
        callbacks: list[TrainerCallback] = [Seeds(job.seed), *job.callbacks, interrupt, calendar, watch]
        if settings.early_stopping is not None:
            callbacks.append(StopEarly(loop, settings.early_stopping, tokens, held_out))
        if (found := training_checkpoints.newest(job.home)) is not None:
            say(f"  {job.label}: goes on from {found.name}")
            loop.checkpoint = str(found)
        for callback in callbacks:
            loop.add_callback(callback)
        yield loop
        watch.check()
        if interrupt.pressed:  # after the end of the last step
            loop.save()
            raise KeyboardInterrupt
    if loop.best_weights:
        for name, parameter in loop.moving.items():
            parameter.data.copy_(loop.best_weights[name])
    require_finite(loop.moving, loop.state.global_step)


def seen(loop: Loop) -> np.ndarray:
    """Tokens seen after each step of a run."""
    args = loop.args
    return loop.rows.tokens_after(args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size)


def _loop(job: Job, steps: int) -> Loop:
    adamw = optimizer(job.model, job.train)
    try:
        loop = Loop(
            home=job.home,
            loss=job.loss,
            model=job.model,
            args=arguments(job, steps),
            rows=job.rows,
            optimizers=(adamw, LambdaLR(adamw, partial(factor, steps=steps, train=job.train))),
        )
    except (ImportError, RuntimeError, ValueError) as error:
        if isinstance(error, RequestError) or not job.train.report_to:
            raise
        raise RequestError(
            "a tracking backend cannot be used here",
            where="train.report_to",
            found=str(error),
            do="pip install coterie[track], or leave it out: metrics.jsonl is always written",
        ) from error
    require_effective(loop, job)
    return loop
