"""One training run from data to files: the one place where a training loop is configured.

It is transformers' Trainer. Its settings are in `request`, its checkpoints and callbacks in `loop`, and what comes out is in
`outcome`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coterie.corpora.blocks import Blocks
from coterie.corpora.order import Order
from coterie.errors import RequestError
from coterie.experts import loop as loops
from coterie.experts import ranks, resume, schedule, snapshots
from coterie.experts import training_files as outcome
from coterie.experts.interrupt import Interrupt
from coterie.experts.scores import mean_nll
from coterie.experts.training_job import Job
from coterie.experts.training_request import Request, arguments, opened, require_effective
from coterie.experts.training_rows import Rows, as_is, require_fit
from coterie.launch import on_ranks
from coterie.models import parameters
from coterie.models.packed_inputs import needs_mask
from coterie.models.quiet import quiet, seeded
from coterie.progress import bar, say


@contextmanager
def prepared(threads: int, seed: int) -> Iterator[int]:
    """The threads, random numbers and silence of a training run; gives the number of threads."""
    with _threads(threads) as count, seeded(seed), quiet():
        yield count


def make(request: Request, folder: Path) -> dict[str, Any]:
    """Train, check, write into ``folder``; returns what the record says of the making."""
    if request.train.parallel and ranks.count() == 1:
        processes = ranks.wanted(request.train, request.where)
        payload = {"request": request.payload(), "folder": str(folder)}
        return on_ranks("coterie.experts.training:on_rank", payload, processes=processes, label=request.label)
    with prepared(request.train.threads, request.seed) as threads:
        _run(request, folder)
    return {"threads": threads, "device": str(request.where)}


def on_rank(payload: dict[str, Any]) -> dict[str, Any]:
    """`make` on one of several ranks; the first one writes."""
    made = make(Request.of(payload["request"]), Path(payload["folder"]))
    return made | {"processes": ranks.count()}


def _run(request: Request, folder: Path) -> None:
    """Set up, train, check, write."""
    settings = request.train
    model = opened(request)
    before = parameters.fingerprints(model)
    sources = [Blocks.open(source) for source in request.sources]
    valid = Blocks.open(request.valid) if request.valid else None
    for blocks in (*sources, *([valid] if valid else [])):
        require_fit(model, blocks)
    budget = {"tokens": settings.tokens} if settings.tokens else {"epochs": settings.epochs or 1.0}
    order = Order([source.tokens_per_block for source in sources], request.weights, request.seed, **budget)
    rows = Rows(sources, order, mask=needs_mask(model))

    def held_out() -> float:
        assert valid is not None
        return mean_nll(model, valid)

    def snapshot(loop: loops.Loop, tokens: int) -> None:
        _snapshot(request, loop, tokens)

    loop = train_job(
        Job(
            home=request.home,
            output=request.output,
            model=model,
            rows=rows,
            train=settings,
            where=request.where,
            precision=request.precision,
            seed=request.seed,
            label=request.label,
            held_out=held_out,
            snapshot=snapshot,
        )
    )
    outcome.check_moved(loop, before)
    tokens = seen(loop)
    lines = outcome.log(loop, tokens)
    with loop.accelerator.autocast():
        loss = held_out() if valid else next(line["loss"] for line in reversed(lines) if "loss" in line)
    figures = outcome.facts(request, loop, int(tokens[loop.state.global_step - 1]), loss=loss)
    figures |= {"snapshots": loop.snapshots, "best_step": loop.best.step if loop.best_weights else None}
    if ranks.first():
        outcome.write(request, loop, folder, figures, lines)


def seen(loop: loops.Loop) -> np.ndarray:
    """Tokens seen after each step of a run."""
    args = loop.args
    per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return loop.train_dataset.tokens_after(per_step)  # type: ignore[union-attr]


def train_job(job: Job) -> loops.Loop:
    """Train, going on from the newest checkpoint that verifies; the best weights are in the model when it returns.

    Raises:
        WorkError: a loss, a gradient or a weight is not finite.
        RequestError: the environment would change how it is trained.
    """
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

    found = resume.newest(job.home)
    with bar(job.label, int(tokens[-1])) as progress, Interrupt() as interrupt:
        watch = loops.Watch(loop, every=1 if job.where == "cpu" else 20)
        callbacks = [
            loops.Seeds(job.seed),
            *job.callbacks,
            interrupt,
            loops.Calendar(tokens, progress, settings.save_every, settings.snapshots, snapshot),
            watch,
        ]
        if settings.early_stopping is not None:
            callbacks.append(loops.StopEarly(loop, settings.early_stopping, tokens, held_out))
        if found is not None:
            say(f"  {job.label}: goes on from {found.name}")
            callbacks.append(loops.Continue(loop, found))
        for callback in callbacks:
            loop.add_callback(callback)
        loop.train(resume_from_checkpoint=str(found) if found else None)
        watch.check()
        if interrupt.asked:  # after the end of the last step
            loop.save()
            raise KeyboardInterrupt
    if loop.best_weights:
        for name, parameter in loop.moving.items():
            parameter.data.copy_(loop.best_weights[name])
    loops.require_finite(loop.moving, loop.state.global_step)
    return loop


def _loop(job: Job, steps: int) -> loops.Loop:
    adamw = schedule.optimizer(job.model, job.train)
    try:
        loop = loops.Loop(
            home=job.home,
            loss=job.loss,
            model=job.model,
            args=arguments(job, steps),
            train_dataset=job.rows,
            data_collator=as_is,
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


def _snapshot(request: Request, loop: loops.Loop, tokens: int) -> None:
    """Publish the weights as they are, as an artifact of their own, and note it for the figures."""
    step = loop.state.global_step
    loops.require_finite(loop.moving, step)
    losses = [entry["loss"] for entry in loop.state.log_history if "loss" in entry]

    def build(folder: Path) -> None:
        figures = outcome.facts(request, loop, tokens, loss=losses[-1] if losses else None)
        outcome.write(request, loop, folder, figures, [])

    made = request.store.make(snapshots.snapshot(request.action, step), build, label=f"{request.label} at {tokens:,} tokens")
    loop.snapshots.append({"step": step, "tokens": tokens, "digest": made.digest})


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
