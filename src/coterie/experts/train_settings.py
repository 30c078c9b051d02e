"""How an expert is trained: budget, optimizer, schedule, precision, saving."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from coterie.spec.settings import Count, Number, Positive, Share, Spec, Whole


class EarlyStopping(Spec):
    """Stop when the held-out loss has not improved; the best weights are kept."""

    patience: Count = 3
    """Evaluations without improvement before training stops."""
    every: Count = 50_000
    """Tokens between two evaluations."""
    least: Number = 0.0
    """Smallest improvement that counts, in nats a token."""


class Train(Spec):
    """Settings of one training run."""

    tokens: Count | None = None
    """Budget in tokens (padding not counted). Data shorter than the budget is repeated, reshuffled each time."""
    epochs: Positive | None = None
    """Budget in passes over the data, instead of `tokens`. One epoch if neither is given."""
    batch_size: Count = 8
    """Sequences in one forward pass on one device."""
    accumulation: Count = 1
    """Forward passes before each optimizer step."""
    learning_rate: Positive = 1e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Shape of the learning rate after warm-up; `wsd` is warm-up, stable, decay."""
    warmup: Share = 0.05
    """Share of the steps with a linearly rising rate."""
    decay: Share = 0.1
    """Share of the steps in which `wsd` decays."""
    floor: Share = 0.1
    """Final learning rate as a share of the peak (`cosine`, `wsd`)."""
    weight_decay: Number = 0.1
    """AdamW's decoupled weight decay; norms and biases are left out."""
    beta1: Share = 0.9
    """AdamW's first moment decay."""
    beta2: Share = 0.95
    """AdamW's second moment decay."""
    clip: Number = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` takes bf16 autocast where the hardware multiplies it faster, fp32 elsewhere."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    early_stopping: EarlyStopping | None = None
    """Stop on held-out loss (the valid split)."""
    snapshots: Count | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Publish the weights each time so many tokens have been seen, or such a share of the budget (`0.1`). Each snapshot is
    then evaluated on the test split of the expert's own slice."""
    save_every: Count = 500_000
    """Tokens between checkpoints for resuming. Not part of the expert's identity."""
    log_every: Count = 10
    """Steps between logged losses. Not part of the expert's identity."""
    report_to: tuple[str, ...] = ()
    """Tracking backends of the Trainer (`tensorboard`, `trackio`, ...). Not part of the expert's identity."""
    threads: Whole = 0
    """CPU threads; 0 leaves torch's choice. Not part of the expert's identity."""
    parallel: Literal["ddp"] | None = None
    """`ddp`: several processes under torchrun train it together; batch_size x accumulation stays the batch of one step of
    all of them. Not part of the expert's identity."""
    processes: Count | None = None
    """Processes for `parallel`; by default one for each GPU. Not part of the expert's identity."""

    @model_validator(mode="after")
    def _one_budget(self) -> Train:
        if self.tokens is not None and self.epochs is not None:
            raise ValueError("give either tokens or epochs")
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ValueError("warmup + decay is above 1")
        if self.processes is not None and self.parallel is None:
            raise ValueError("processes is ignored without parallel: set parallel: ddp")
        if self.processes is not None and self.batch_size * self.accumulation % self.processes:
            raise ValueError(
                f"batch_size x accumulation = {self.batch_size * self.accumulation} sequences cannot be shared evenly by "
                f"{self.processes} processes"
            )
        return self

    def refuse(self, key: str, *names: str) -> None:
        """ValueError if one of these settings is not as it is by default: it would be ignored here.

        Args:
            key: where these settings stand, for the message.
        """
        for name in names:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{key}.{name} has no meaning here and would be ignored: take it out")

    def identity(self) -> dict:
        """The settings that make an expert what it is; saving, logging, threads and processes are left out."""
        left_out = {"save_every", "log_every", "report_to", "threads", "parallel", "processes"}
        return self.model_dump(mode="json", exclude=left_out)
