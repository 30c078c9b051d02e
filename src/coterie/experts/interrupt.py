"""Ctrl-C ends a run between two steps, with a checkpoint, so that nothing is lost; a second one ends it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from coterie.progress import say


class Interrupt(TrainerCallback):
    """``with Interrupt() as callback: ...`` Raises KeyboardInterrupt once the checkpoint is written."""

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
