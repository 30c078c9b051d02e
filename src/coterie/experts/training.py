"""One training run, whatever it trains: the one place where a training loop is configured.

It is transformers' Trainer. Its settings are in `trainer_arguments`, its checkpoints and callbacks in `loop`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from transformers import TrainerCallback

from coterie.errors import RequestError
from coterie.experts import ranks, resume, schedule
from coterie.experts.interrupt import Interrupt
from coterie.experts.loop import Calendar, Continue, Loop, Seeds, StopEarly, Watch, require_finite
from coterie.experts.trainer_arguments import arguments, require_effective
from coterie.experts.training_job import Job
from coterie.models.quiet import quiet, seeded
from coterie.progress import bar, say


@contextmanager
def prepared(threads: int, seed: int) -> Iterator[int]:
    """The threads, random numbers and silence of a training run; gives the number of threads."""
    with _threads(threads) as count, seeded(seed), quiet():
        yield count


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
        if (found := resume.newest(job.home)) is not None:
            say(f"  {job.label}: goes on from {found.name}")
            loop.checkpoint = str(found)
            callbacks.append(Continue(loop, found))
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
    adamw = schedule.optimizer(job.model, job.train)
    try:
        loop = Loop(
            home=job.home,
            loss=job.loss,
            model=job.model,
            args=arguments(job, steps),
            rows=job.rows,
            optimizers=(adamw, schedule.scheduler(adamw, steps, job.train)),
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


@contextmanager
def _threads(count: int) -> Iterator[int]:
    """Use so many CPU threads (0: as many as before) inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    gc.freeze()  # the Trainer collects garbage on starting: half a second if every imported module is looked through
    try:
        yield torch.get_num_threads()
    finally:
        gc.collect()  # the Trainer and its model refer to each other; all that is older is frozen and not looked through
        gc.unfreeze()
        torch.set_num_threads(before)
