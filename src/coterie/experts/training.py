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

import torch

from coterie.corpora import Blocks, Order
from coterie.errors import RequestError
from coterie.experts import loop as loops
from coterie.experts import outcome, resume, schedule, verbs
from coterie.experts.data import Rows, as_is, require_fit
from coterie.experts.interrupt import Interrupt
from coterie.experts.request import Request, arguments, opened, require_effective
from coterie.experts.scoring import mean_nll
from coterie.models import parameters
from coterie.models.packing import needs_mask
from coterie.models.quiet import quiet, seeded
from coterie.progress import bar, say


def make(request: Request, folder: Path) -> dict[str, Any]:
    """Train, check, write into ``folder``; returns what the record says of the making."""
    with _threads(request.train.threads) as threads, seeded(request.seed), quiet():
        _run(request, folder)
    return {"threads": threads, "device": str(request.where)}


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
    tokens = rows.tokens_after(settings.batch_size * settings.accumulation)
    loop = _loop(request, model, rows, len(tokens))

    def held_out() -> float:
        assert valid is not None
        with loop.accelerator.autocast():
            return mean_nll(model, valid)

    def snapshot(step: int) -> None:
        _snapshot(request, loop, int(tokens[step - 1]))

    found = resume.newest(request.home)
    with bar(request.label, int(tokens[-1])) as progress, Interrupt() as interrupt:
        watch = loops.Watch(loop, every=1 if request.where == "cpu" else 20)
        callbacks = [
            loops.Seeds(request.seed),
            interrupt,
            loops.Calendar(tokens, progress, settings.save_every, settings.snapshots, snapshot),
            watch,
        ]
        if settings.early_stopping is not None:
            callbacks.append(loops.StopEarly(loop, settings.early_stopping, tokens, held_out))
        if found is not None:
            say(f"  {request.label}: goes on from {found.name}")
            callbacks.append(loops.Continue(loop, found))
        for callback in callbacks:
            loop.add_callback(callback)
        loop.train(resume_from_checkpoint=str(found) if found else None)
    watch.check()

    if loop.best_weights:
        for name, parameter in loop.moving.items():
            parameter.data.copy_(loop.best_weights[name])
    loops.require_finite(loop.moving, loop.state.global_step)
    outcome.check_moved(loop, before)
    lines = outcome.log(loop, tokens)
    loss = held_out() if valid else next(line["loss"] for line in reversed(lines) if "loss" in line)
    figures = outcome.facts(request, loop, int(tokens[loop.state.global_step - 1]), loss=loss)
    figures |= {"snapshots": loop.snapshots, "best_step": loop.best.step if loop.best_weights else None}
    outcome.write(request, loop, folder, figures, lines)


def _loop(request: Request, model: Any, rows: Rows, steps: int) -> loops.Loop:
    adamw = schedule.optimizer(model, request.train)
    try:
        loop = loops.Loop(
            home=request.home,
            model=model,
            args=arguments(request, steps),
            train_dataset=rows,
            data_collator=as_is,
            optimizers=(adamw, schedule.scheduler(adamw, steps, request.train)),
        )
    except (ImportError, RuntimeError, ValueError) as error:
        if isinstance(error, RequestError) or not request.train.report_to:
            raise
        raise RequestError(
            "a tracking backend cannot be used here", where="train.report_to", found=str(error),
            do="pip install coterie[track], or leave it out: metrics.jsonl is always written",
        ) from error  # fmt: skip
    require_effective(loop, request)
    return loop


def _snapshot(request: Request, loop: loops.Loop, tokens: int) -> None:
    """Publish the weights as they are, as an artifact of their own, and note it for the figures."""
    step = loop.state.global_step
    loops.require_finite(loop.moving, step)
    losses = [entry["loss"] for entry in loop.state.log_history if "loss" in entry]

    def build(folder: Path) -> None:
        figures = outcome.facts(request, loop, tokens, loss=losses[-1] if losses else None)
        outcome.write(request, loop, folder, figures, [])

    made = request.store.make(verbs.snapshot(request.action, step), build, label=f"{request.label} at {tokens:,} tokens")
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
