"""Train one expert once: the one place where a training loop is configured.

`train` states what decides the result (the action), and only if the store lacks it opens the model and the data and runs
transformers' Trainer. The Trainer's defaults that would change a result without a word are set here, each with its reason.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments

from coterie.corpora import Blocks, Order
from coterie.errors import RequestError, WorkError
from coterie.experts import loop as loops
from coterie.experts import resume, schedule
from coterie.experts.data import Rows, as_is
from coterie.experts.score import mean_nll
from coterie.models import contents, device, open_model, parameters
from coterie.models.initialise import copy_tokenizer
from coterie.models.packing import needs_mask
from coterie.models.quiet import quiet, seeded
from coterie.progress import bar, say
from coterie.recipe import Lora, Train
from coterie.store import Action, Artifact, Store

Kind = Literal["full", "ffn", "lora"]


def train(
    store: Store,
    *,
    start: Artifact,
    blocks: Sequence[Artifact],
    weights: Sequence[float] | None = None,
    valid: Artifact | None = None,
    kind: Kind = "full",
    train: Train,
    lora: Lora | None = None,
    seed: int,
    base: Artifact | None = None,
    label: str = "expert",
) -> Artifact:
    """An expert: a Hugging Face model directory (``full``, ``ffn``) or a PEFT adapter directory (``lora``).

    Args:
        start: the weights to start from; an adapter needs the ``base`` it rests on, and can only be trained on as ``lora``.
        blocks: training blocks, one artifact a source.
        weights: share of the tokens of each source; by default in proportion to their sizes.
        valid: held-out blocks: the loss in the facts, and early stopping.
        kind: train all weights, the feed-forward ones, or an adapter with settings ``lora``.
        train: budget, optimizer, schedule.
        seed: of the order of the data, dropout and an adapter's start.

    Returns:
        an ``experts`` artifact. With ``train.snapshots`` its facts list the snapshots, artifacts of their own.

    Raises:
        RequestError: the request cannot be met.
        WorkError: the run diverged, or a parameter did not do what it was declared to; nothing is published.
    """
    if train.early_stopping is not None and valid is None:
        raise RequestError(
            "early stopping needs held-out data", where="train.early_stopping", do="give the corpus a valid split"
        )
    assert (lora is None) or kind == "lora"
    lora = (lora or Lora()) if kind == "lora" else None
    where = device.pick()
    precision = device.precision(train.precision, where)
    shares = [w / sum(weights) for w in weights] if weights is not None and len(blocks) > 1 else None
    spec = {
        "kind": kind,
        "train": train.identity(),
        "lora": lora.model_dump(mode="json") if lora else None,
        "seed": seed,
        "weights": shares,
    }
    inputs = {"start": contents(start)}
    inputs |= {f"blocks.{i}": source.content("blocks.safetensors") for i, source in enumerate(blocks)}
    inputs |= {"valid": valid.content("blocks.safetensors")} if valid else {}
    inputs |= {"base": contents(base)} if base else {}
    libraries = ("torch", "transformers", "peft") if lora else ("torch", "transformers")
    action = Action("experts", spec, inputs, libraries, device.numerics(where, precision))

    def build(folder: Path) -> dict[str, Any]:
        run = _Run(store, action, start, base, kind, lora, train, seed, label, where, precision)
        return run.into(folder, [Blocks.open(b) for b in blocks], shares, Blocks.open(valid) if valid else None)

    return store.make(action, build, label=label, tokens=train.tokens)


class _Run:
    """One training run in progress."""

    def __init__(
        self, store: Store, action: Action, start: Artifact, base: Artifact | None, kind: Kind, lora: Lora | None,
        train: Train, seed: int, label: str, where: torch.device, precision: device.Precision,
    ) -> None:  # fmt: skip
        self.store, self.action, self.start, self.base, self.kind, self.lora = store, action, start, base, kind, lora
        self.train, self.seed, self.label, self.where, self.precision = train, seed, label, where, precision
        self.home = store.scratch(action)

    def into(self, folder: Path, sources: list[Blocks], shares: list[float] | None, valid: Blocks | None) -> dict[str, Any]:
        threads = torch.get_num_threads()
        try:
            if self.train.threads:
                torch.set_num_threads(self.train.threads)
            used = torch.get_num_threads()
            gc.freeze()  # the Trainer collects garbage on starting: half a second if all imported modules are looked through
            with seeded(self.seed), quiet():
                self._run(folder, sources, shares, valid)
        finally:
            gc.unfreeze()
            torch.set_num_threads(threads)
        return {"threads": used, "device": str(self.where)}

    def _run(self, folder: Path, sources: list[Blocks], shares: list[float] | None, valid: Blocks | None) -> None:
        model = self._open()
        before = parameters.fingerprints(model)
        budget = {"tokens": self.train.tokens} if self.train.tokens else {"epochs": self.train.epochs or 1.0}
        order = Order([s.tokens_per_block for s in sources], shares, self.seed, **budget)
        rows = Rows(sources, order, mask=needs_mask(model))
        tokens = rows.tokens_after(self.train.batch_size * self.train.accumulation)
        adamw = schedule.optimizer(model, self.train)
        loop = loops.Loop(
            home=self.home,
            model=model,
            args=self._arguments(len(tokens)),
            train_dataset=rows,
            data_collator=as_is,
            optimizers=(adamw, schedule.scheduler(adamw, len(tokens), self.train)),
        )
        self._check_effective(loop)

        def held_out() -> float:
            assert valid is not None
            with loop.accelerator.autocast():
                return mean_nll(model, valid)

        found = resume.newest(self.home)
        with bar(self.label, int(tokens[-1])) as progress:
            watch = loops.Watch(loop, every=1 if self.where.type == "cpu" else 20)
            calendar = loops.Calendar(
                tokens, progress, save_every=self.train.save_every, snapshots=self.train.snapshots,
                snapshot=lambda step: self._snapshot(loop, step, int(tokens[step - 1])),
            )  # fmt: skip
            for callback in (loops.Seeds(self.seed), calendar, watch):
                loop.add_callback(callback)
            if self.train.early_stopping is not None:
                loop.add_callback(loops.StopEarly(loop, self.train.early_stopping, tokens, held_out))
            if found is not None:
                say(f"  {self.label}: goes on from {found.name}")
                loop.add_callback(_Continue(loop, found))
            loop.train(resume_from_checkpoint=str(found) if found else None)
        watch.check()

        steps = loop.state.global_step
        if loop.best_weights:
            for name, parameter in loop.moving.items():
                parameter.data.copy_(loop.best_weights[name])
        loops.require_finite(loop.moving, steps)
        _check_moved(loop, before)
        _check_moved(loop, before)
        log = [_line(entry, tokens) for entry in loop.state.log_history if "loss" in entry or "eval_loss" in entry]
        facts = self._facts(loop, steps, int(tokens[steps - 1]))
        facts["loss"] = held_out() if valid else next(e["loss"] for e in reversed(log) if "loss" in e)
        facts["best_step"] = loop.best.step if loop.best_weights else None
        self._publish(loop, folder, facts, log)

    def _open(self) -> Any:
        adapter = "adapter_config.json" in self.start.files
        if adapter and self.kind != "lora":
            raise RequestError(
                f"kind {self.kind} cannot start from an adapter", where=self.label, found="a LoRA adapter",
                do="set kind: lora, or start from a whole model",
            )  # fmt: skip
        lora = self.lora or Lora()
        model: Any = open_model(self.start, base=self.base, device=self.where, trainable=True)
        if adapter:
            found = model.peft_config["default"]
            if (found.r, found.lora_alpha) != (lora.r, lora.alpha):
                raise RequestError(
                    "the adapter to start from has another shape", where=f"{self.label} (lora)",
                    expected=f"r {found.r}, alpha {found.lora_alpha}", found=f"r {lora.r}, alpha {lora.alpha}",
                )  # fmt: skip
        elif self.kind == "lora":
            model = parameters.add_adapter(model, lora)
        elif self.kind == "ffn":
            parameters.train_only_feed_forward(model)
        else:
            model.requires_grad_(True)
        if self.train.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model

    def _arguments(self, steps: int) -> TrainingArguments:
        t = self.train
        try:
            return TrainingArguments(
                output_dir=str(self.home),
                max_steps=steps,  # one pass over the order: the Trainer's epochs never restart it
                per_device_train_batch_size=t.batch_size,
                gradient_accumulation_steps=t.accumulation,
                train_sampling_strategy="sequential",  # the order is shuffled already
                max_grad_norm=t.clip,
                bf16=self.precision == "bf16",
                use_cpu=self.where.type == "cpu",
                seed=self.seed % 2**32,
                logging_steps=t.log_every,
                logging_nan_inf_filter=False,  # its default logs a diverged run's loss as 0.0 and goes on
                label_smoothing_factor=0.0,  # it would take the labels from the model, and with them loss and shift
                use_cache=False,  # with a cache, packed documents see each other
                remove_unused_columns=False,
                label_names=["labels"],
                save_strategy="no",  # ours, by tokens
                disable_tqdm=True,
                log_level="critical",
                report_to=list(t.report_to) or "none",
                dataloader_pin_memory=self.where.type == "cuda",
            )
        except (ImportError, ValueError) as error:
            raise RequestError("the training settings cannot be used here", where="train", found=str(error)) from error

    def _check_effective(self, loop: loops.Loop) -> None:
        """The Trainer takes settings from the environment, and falls back from some it cannot have: compare."""
        args, accelerator = loop.args, loop.accelerator
        effective = {
            "processes": args.world_size,
            "distribution": str(accelerator.distributed_type.value),
            "device": args.device.type,
            "precision": accelerator.mixed_precision,
            "accumulation": args.gradient_accumulation_steps,
        }
        requested = {
            "processes": 1,
            "distribution": "NO",
            "device": self.where.type,
            "precision": "bf16" if self.precision == "bf16" else "no",
            "accumulation": self.train.accumulation,
        }
        if wrong := [key for key in requested if requested[key] != effective[key]]:
            raise RequestError(
                "the training environment changes the request", where=", ".join(wrong),
                expected=str({k: requested[k] for k in wrong}), found=str({k: effective[k] for k in wrong}),
                do="unset ACCELERATE_* and torchrun's variables ("
                + ", ".join(v for v in os.environ if v.startswith("ACCELERATE_") or v in ("WORLD_SIZE", "RANK")) + ")",
            )  # fmt: skip

    def _facts(self, loop: loops.Loop, step: int, tokens: int) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "tokens": tokens,
            "steps": step,
            "loss": None,
            "precision": self.precision,
            "parameters": parameters.count(loop.model),
            "trained_parameters": parameters.count(loop.model, trained=True),
            "start": contents(self.start),
            "base": contents(self.base or self.start) if self.kind == "lora" else None,
            "snapshots": loop.snapshots,
        }

    def _snapshot(self, loop: loops.Loop, step: int, tokens: int) -> None:
        """Publish the weights of this step."""
        loops.require_finite(loop.moving, step)
        spec = {**self.action.spec, "snapshot_step": step}
        action = Action("experts", spec, self.action.inputs, self.action.libraries, self.action.numerics)
        last = [e["loss"] for e in loop.state.log_history if "loss" in e][-1:]

        def build(folder: Path) -> None:
            facts = self._facts(loop, step, tokens) | {"snapshots": [], "loss": last[0] if last else None}
            self._publish(loop, folder, facts, [])

        made = self.store.make(action, build, label=f"{self.label} at {tokens:,} tokens")
        loop.snapshots.append({"step": step, "tokens": tokens, "digest": made.digest})

    def _publish(self, loop: loops.Loop, folder: Path, facts: dict[str, Any], log: list[dict[str, Any]]) -> None:
        model = loop.model
        model.config.use_cache = True  # for whoever opens it to generate
        model.save_pretrained(folder)
        model.config.use_cache = False
        if self.kind == "lora":
            _plain_adapter(folder)
        copy_tokenizer(self.start.path, folder)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


class _Continue(loops.TrainerCallback):
    """On resuming, takes up the log where the checkpoint left it."""

    def __init__(self, loop: loops.Loop, checkpoint: Path) -> None:
        self.loop, self.checkpoint = loop, checkpoint

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.loop.continue_log(self.checkpoint)


def _check_moved(loop: loops.Loop, before: dict[str, str]) -> None:
    """Every parameter declared trainable has had a gradient and has changed; every other is what it was, bit by bit."""
    after, moving = parameters.fingerprints(loop.model), loop.moving
    for name in before:
        if name not in moving:
            if after[name] != before[name]:
                raise WorkError("a frozen parameter changed", where=name, do="report this: it is a fault of ours")
            continue
        moment = loop.optimizer.state.get(moving[name], {}).get("exp_avg")
        waits = (
            ".lora_A." in name and loop.state.global_step == 1
        )  # B is zero before the first step, and A's gradient with it
        if not waits and (moment is None or not moment.any()):
            raise WorkError(
                "a parameter to be trained never had a gradient", where=name, kept="nothing of this run is published",
                do="train the other kinds (full, ffn, lora), or other lora.targets",
            )  # fmt: skip
        if not waits and after[name] == before[name]:
            raise WorkError(
                "a parameter to be trained did not change", where=name, kept="nothing of this run is published",
                do="raise train.learning_rate: its steps are below the precision of the weights",
            )  # fmt: skip


def _line(entry: dict[str, Any], tokens: Any) -> dict[str, Any]:
    """A line of metrics.jsonl: no times, so that equal runs log equal bytes."""
    step = entry["step"]
    kept: dict[str, Any] = {key: entry[key] for key in ("loss", "eval_loss", "learning_rate", "grad_norm") if key in entry}
    return {"step": step, "tokens": int(tokens[step - 1]), **kept}


def _plain_adapter(folder: Path) -> None:
    """Take out of an adapter directory what differs between machines and runs: the base's path (its digest is in the
    facts), the order of a set, and a model card."""
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = None
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
