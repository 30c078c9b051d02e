"""What comes out of a training run: checked, then written as files that equal runs write equally."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from coterie.errors import WorkError
from coterie.experts.loop import Loop
from coterie.experts.training_request import Request
from coterie.models import parameters
from coterie.models.checkpoint import contents
from coterie.models.initialise import copy_tokenizer
from coterie.models.lora_files import neutral
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
    model.save_pretrained(folder)
    model.config.use_cache = False
    if request.kind == "lora":
        neutral(folder)
    copy_tokenizer(request.start.path, folder)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "facts.json").write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
