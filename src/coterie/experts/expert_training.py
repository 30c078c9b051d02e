"""The training of one expert: its model and data as a job of the Trainer; what comes out of it is checked, then written as
files that equal runs write equally."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from coterie.corpora.blocks import Blocks
from coterie.corpora.order import Order
from coterie.errors import RequestError, WorkError
from coterie.experts import ranks
from coterie.experts.loop import Loop, require_finite
from coterie.experts.scores import mean_nll
from coterie.experts.training import Job, seen
from coterie.experts.training_request import Request
from coterie.experts.training_rows import Rows, require_fit
from coterie.models import parameters
from coterie.models.checkpoint import contents
from coterie.models.initialise import copy_tokenizer
from coterie.models.lora_files import neutral
from coterie.models.lora_settings import Lora
from coterie.models.open import open_model
from coterie.models.packed_inputs import needs_mask
from coterie.models.weight_precision import save_model, stated, weight_precision
from coterie.spec.json_types import Figures


def check_moved(loop: Loop, before: dict[str, str]) -> None:
    """Every parameter declared trainable has had a gradient and has changed since its fingerprint ``before``; every other is
    what it was, bit by bit."""
    after, moving, kept = parameters.fingerprints(loop.model), loop.moving, "nothing of this run is published"
    for name in before:
        if name not in moving:
            if after[name] != before[name]:
                raise WorkError("a frozen parameter changed", where=name, kept=kept, do="report this: it is a fault of ours")
            continue
        if ".lora_A." in name and loop.state.global_step == 1:
            continue  # B starts at zero, and with it A's gradient
        moment = loop.optimizer.state.get(moving[name], {}).get("exp_avg")
        if moment is None or not moment.any():
            raise WorkError(
                "a parameter to be trained never had a gradient",
                where=name,
                kept=kept,
                do="train another kind (full, ffn, lora), or name other lora.targets",
            )
        if after[name] == before[name]:
            raise WorkError(
                "a parameter to be trained did not change",
                where=name,
                kept=kept,
                do="raise train.learning_rate: its steps are below the precision of the weights",
            )


def facts(request: Request, loop: Loop, tokens: int, *, loss: float | None) -> Figures:
    """The figures beside the weights; ``loss`` in nats a token, held-out if there was something held out."""
    return {
        "kind": request.kind,
        "tokens": tokens,
        "steps": loop.state.global_step,
        "loss": loss,
        "precision": request.precision,
        **stated(request.start, request.kind),
        "parameters": parameters.count(loop.model),
        "trained_parameters": parameters.count(loop.model, trained=True),
        "start": contents(request.start),
        "base": contents(request.base or request.start) if request.kind == "lora" else None,
    }


def log(loop: Loop, tokens: np.ndarray) -> list[Figures]:
    """The lines of metrics.jsonl, from the tokens seen after each step: no times, so that equal runs log equal bytes."""
    lines = []
    for entry in loop.state.log_history:
        if "loss" in entry or "eval_loss" in entry:
            line: Figures = {"step": entry["step"], "tokens": int(tokens[int(entry["step"]) - 1])}
            lines.append(line | {k: entry[k] for k in ("loss", "eval_loss", "learning_rate", "grad_norm") if k in entry})
    return lines


def write(request: Request, model: PreTrainedModel, folder: Path, figures: Figures, lines: list[Figures]) -> None:
    """Weights as stock libraries open them, the tokenizer, the log and the figures."""
    model.config.use_cache = True  # for whoever opens it to generate
    save_model(model, folder, "fp32" if request.kind == "lora" else weight_precision(request.start.path))
    model.config.use_cache = False
    if request.kind == "lora":
        neutral(folder)
    copy_tokenizer(request.start.path, folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "facts.json").write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")


class ExpertTraining:
    """A request with its model open and its data in order, as a ``job`` for `coterie.experts.training`."""

    def __init__(self, request: Request) -> None:
        self.request, self.model = request, opened(request)
        self.before = parameters.fingerprints(self.model)
        sources = [Blocks.open(source) for source in request.blocks]
        self.valid = Blocks.open(request.valid) if request.valid else None
        for blocks in (*sources, *([self.valid] if self.valid else [])):
            require_fit(self.model, blocks)
        train = request.train
        budget = {"tokens": train.tokens} if train.tokens else {"epochs": train.epochs or 1.0}
        order = Order([source.tokens_per_block for source in sources], request.shares, request.seed, **budget)
        self.job = Job(
            home=request.home,
            output=request.output,
            model=self.model,
            rows=Rows(sources, order, mask=needs_mask(self.model)),
            train=train,
            where=request.where,
            precision=request.precision,
            seed=request.seed,
            label=request.label,
            held_out=self.held_out,
            snapshot=self.publish_snapshot,
        )

    def held_out(self) -> float:
        assert self.valid is not None
        return mean_nll(self.model, self.valid)

    def publish_snapshot(self, loop: Loop, tokens: int) -> None:
        """The weights as they are, as an artifact of their own, noted for the figures."""
        request, step = self.request, loop.state.global_step
        require_finite(loop.moving, step)
        losses = [entry["loss"] for entry in loop.state.log_history if "loss" in entry]

        def build(folder: Path) -> None:
            figures = facts(request, loop, tokens, loss=losses[-1] if losses else None)
            write(request, self.model, folder, figures, [])

        made = request.store.make(request.snapshot(step), build, label=f"{request.label} at {tokens:,} tokens")
        loop.snapshots.append({"step": step, "tokens": tokens, "digest": made.digest})

    def write(self, loop: Loop, folder: Path) -> None:
        """Check what moved, and write the expert; of several ranks the first writes."""
        check_moved(loop, self.before)
        tokens = seen(loop)
        lines = log(loop, tokens)
        with loop.accelerator.autocast():
            loss = self.held_out() if self.valid else next(line["loss"] for line in reversed(lines) if "loss" in line)
        figures = facts(self.request, loop, int(tokens[loop.state.global_step - 1]), loss=loss)
        figures |= {"snapshots": loop.snapshots, "best_step": loop.best.step if loop.best_weights else None}
        if ranks.first():
            write(self.request, self.model, folder, figures, lines)


def opened(request: Request) -> PreTrainedModel:
    """The model to start from, with what the kind trains set trainable and all else frozen."""
    adapter, kind, lora = "adapter_config.json" in request.start.files, request.kind, request.adapter or Lora()
    model = open_model(request.start, base=request.base, device=request.where, trainable=True)
    if adapter:
        found = parameters.shape_of_adapter(model)
        if found != (lora.r, lora.alpha):
            raise RequestError(
                "the adapter to start from has another shape",
                where=f"{request.label} (lora)",
                expected=f"r {found[0]}, alpha {found[1]}",
                found=f"r {lora.r}, alpha {lora.alpha}",
            )
    elif kind == "lora":
        model = parameters.add_adapter(model, lora)
    elif kind == "ffn":
        parameters.train_only_feed_forward(model)
    else:
        model.requires_grad_(True)
    if request.train.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model
