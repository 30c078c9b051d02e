"""The Trainer with our checkpoints, and the callbacks that stand around its loop.

The loop itself is transformers'. What is overridden are the hooks that read and write checkpoints (ours are atomic, hashed
and hold no pickle) and two that cost or drop something: the count of floating point operations, which walks all parameters
at every step, and the gradient's norm, which is kept for the watch below. What depends on history besides weights and
moments is the sum of losses since the last log line, and early stopping's memory; both go into the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from coterie.errors import WorkError
from coterie.experts import ranks, training_checkpoints
from coterie.experts.train_settings import EarlyStopping
from coterie.experts.training_rows import Batch, Loss, Rows, as_is
from coterie.progress import Bar, say
from coterie.spec.json_types import Figures


@dataclass
class Best:
    """Early stopping's memory."""

    loss: float = float("inf")
    step: int = 0
    stale: int = 0
    """Evaluations since then."""


class Loop(Trainer):
    """One training run, with checkpoints below ``home``. ``loss`` is of the model, a batch and the counted targets of the
    step; the model's own by default."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: LambdaLR

    def __init__(
        self,
        *,
        model: nn.Module,
        rows: Rows,
        args: TrainingArguments,
        optimizers: tuple[torch.optim.Optimizer, LambdaLR],
        home: Path,
        loss: Loss | None = None,
    ) -> None:
        super().__init__(model, args, data_collator=as_is, train_dataset=rows, optimizers=optimizers)
        self.remove_callback(PrinterCallback)
        self.rows, self.home, self.loss = rows, home, loss
        self.checkpoint: str | None = None
        """Where to go on from."""
        self.best = Best()
        self.best_weights: dict[str, Tensor] = {}
        self.snapshots: list[Figures] = []
        self.grad_norm: Tensor | float = 0.0

    @property
    def moving(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def compute_loss(
        self, model: nn.Module, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor | tuple[Tensor, object]:
        if self.loss is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        assert isinstance(num_items_in_batch, Tensor), "without the count of the whole step, batches would not add up"
        loss = self.loss(model, inputs, num_items_in_batch)
        if self.args.average_tokens_across_devices:  # the count is that of all ranks, and gradients are averaged over them
            loss = loss * self.accelerator.num_processes
        return (loss, {}) if return_outputs else loss

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        self.save()

    def save(self) -> None:
        """Write a checkpoint; every rank calls it."""
        loss_sums = self.accelerator.gather(self._tr_loss.detach().reshape(1)).tolist()  # of each rank
        if not ranks.first():
            return
        require_finite(self.moving, self.state.global_step)
        names = {parameter: name for name, parameter in self.moving.items()}
        files: dict[str, Mapping[str, Tensor]] = {
            "trainable": self.moving,
            "optimizer": training_checkpoints.optimizer_tensors(self.optimizer, names),
        }
        if self.best_weights:
            files["best"] = self.best_weights
        history = {
            "best": asdict(self.best),
            "rates": [group["lr"] for group in self.optimizer.param_groups],
            "schedule": self.lr_scheduler.state_dict(),
            "loss_sums": loss_sums,
            "last_logged": self._globalstep_last_logged,
            "snapshots": self.snapshots,
        }
        texts = {"state.json": json.dumps(history), "trainer_state.json": json.dumps(asdict(self.state))}
        training_checkpoints.save(self.home, self.state.global_step, files, texts)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saved, moving = training_checkpoints.tensors(Path(resume_from_checkpoint), "trainable"), self.moving
        assert saved.keys() == moving.keys(), "a checkpoint of another model"
        for name, parameter in moving.items():
            parameter.data.copy_(saved[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        names = {parameter: name for name, parameter in self.moving.items()}
        training_checkpoints.load_optimizer(self.optimizer, names, training_checkpoints.tensors(folder, "optimizer"))
        history = training_checkpoints.state(folder)
        for group, rate in zip(self.optimizer.param_groups, history["rates"], strict=True):
            group["lr"] = rate
        self.lr_scheduler.load_state_dict(history["schedule"])
        self.best, self.best_weights = Best(**history["best"]), training_checkpoints.tensors(folder, "best")
        self.snapshots = history["snapshots"]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Randomness follows from (seed, step): there is no state to load."""

    def continue_log(self, checkpoint: Path) -> None:
        """Take up the sum of losses where the last log line left it, so that the log is the one of a straight run."""
        history = training_checkpoints.state(checkpoint)
        sums, rank = history["loss_sums"], self.args.process_index
        # Of other ranks than these (the same run may go on with more or fewer) the mean is what the log would show.
        self._tr_loss += sums[rank] if len(sums) == self.args.world_size else sum(sums) / len(sums)
        self._globalstep_last_logged = history["last_logged"]

    def floating_point_ops(self, inputs: Batch) -> int:
        return 0

    def _get_grad_norm(self, model: nn.Module, grad_norm: float | None = None) -> Tensor | float:
        self.grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self.grad_norm

    @property
    def loss_sum(self) -> Tensor:
        """Sum of the steps' losses since the last log line, on the device."""
        return self._tr_loss


def require_finite(parameters: dict[str, nn.Parameter], step: int) -> None:
    """WorkError if a weight is NaN or infinite."""
    for name, parameter in parameters.items():
        if not torch.isfinite(parameter).all():
            raise diverged(step, f"a weight ({name})")


def diverged(step: int, what: str) -> WorkError:
    return WorkError(
        f"training diverged: {what} is not finite",
        where=f"step {step}",
        kept="nothing of this run is published; everything finished before it is",
        do="lower train.learning_rate, lengthen train.warmup or set train.clip, and run again",
    )


class Seeds(TrainerCallback):
    """All randomness of a step follows from (seed, step), so a resumed run draws what a straight one draws."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        rank = f"/{args.process_index}" if args.process_index else ""  # ranks see different rows, and drop different units
        word = hashlib.sha256(f"{self.seed}/{state.global_step}{rank}".encode()).digest()
        number = int.from_bytes(word[:8], "little")
        torch.default_generator.manual_seed(number)  # torch.manual_seed also takes 2 ms for a GPU that is absent
        if args.device.type == "cuda":
            torch.cuda.manual_seed(number)


class Watch(TrainerCallback):
    """Stops at the first step whose loss or gradient is not finite.

    On a GPU the step is noted there and read every ``every`` steps, so that watching costs no synchronisation.
    """

    def __init__(self, loop: Loop, every: int) -> None:
        self.loop, self.every = loop, every
        self.first_bad = torch.zeros((), dtype=torch.long, device=loop.args.device)

    def on_train_begin(self, *_: object, **__: object) -> None:
        if self.loop.checkpoint is not None:
            self.loop.continue_log(Path(self.loop.checkpoint))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        bad = ~torch.isfinite(self.loop.loss_sum + self.loop.grad_norm) & (self.first_bad == 0)
        self.first_bad += bad * state.global_step
        if state.global_step % self.every == 0 or control.should_save or state.global_step >= state.max_steps:
            self.check()

    def check(self) -> None:
        if step := int(self.first_bad):
            raise diverged(step, "the gradient" if torch.isfinite(self.loop.loss_sum) else "the loss")


class Calendar(TrainerCallback):
    """Says when to log, to save and to publish a snapshot, in tokens seen, and moves the progress bar."""

    def __init__(
        self, tokens: np.ndarray, bar: Bar, save_every: int, snapshots: float | None, snapshot: Callable[[int], None]
    ) -> None:
        self.tokens, self.bar, self.snapshot = tokens, bar, snapshot
        self.saves = marks(tokens, save_every)
        every = None if snapshots is None else snapshots if snapshots >= 1 else snapshots * int(tokens[-1])
        self.snapshots = marks(tokens, every) - {len(tokens)} if every else set()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        step = state.global_step
        self.bar.to(int(self.tokens[step - 1]))
        control.should_log |= step == state.max_steps
        control.should_save |= step in self.saves
        if step in self.snapshots:
            self.snapshot(step)


def marks(tokens: np.ndarray, every: float) -> set[int]:
    """Steps (from 1) at which the tokens seen first reach each multiple of ``every``."""
    return {int(s) + 1 for s in np.searchsorted(tokens, np.arange(every, int(tokens[-1]) + 1, every))}


class StopEarly(TrainerCallback):
    """Evaluates on held-out blocks; keeps the best weights in memory and stops when they have not been beaten."""

    def __init__(self, loop: Loop, rule: EarlyStopping, tokens: np.ndarray, held_out: Callable[[], float]) -> None:
        self.loop, self.rule, self.held_out = loop, rule, held_out
        self.steps = marks(tokens, rule.every) | {len(tokens)}

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if state.global_step not in self.steps:
            return
        loss, best = self.held_out(), self.loop.best
        self.loop.log({"eval_loss": loss})
        if loss < best.loss - (self.rule.least if self.loop.best_weights else 0.0):
            self.loop.best = Best(loss, state.global_step)
            self.loop.best_weights = {n: p.detach().to("cpu", copy=True) for n, p in self.loop.moving.items()}
        else:
            best.stale += 1
        if self.loop.best.stale >= self.rule.patience:
            control.should_training_stop = control.should_log = True
            control.should_save = False  # what comes next is the end, and a resumed run would train past it


class Interrupt(TrainerCallback):
    """Ctrl-C ends a run between two steps: KeyboardInterrupt once a checkpoint is written; a second one ends it at once."""

    def __init__(self) -> None:
        self.pressed = False
        self.before: signal.Handlers | Callable[[int, FrameType | None], object] | int | None = None

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self.before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
            self.before = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.pressed = True
        self._restore()
        say("  stopping after this step, with a checkpoint; once more stops at once")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        control.should_save |= self.pressed

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        if self.pressed:
            raise KeyboardInterrupt
