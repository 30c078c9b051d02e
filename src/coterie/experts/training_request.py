"""One training run as it was asked for, and how the model and the Trainer are set up for it.

The Trainer's defaults that would change a result without a word are set here, each with its reason.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainingArguments

from coterie.errors import RequestError
from coterie.experts import ranks
from coterie.experts.expert_settings import ExpertKind
from coterie.experts.train_settings import Train
from coterie.experts.training_job import Job
from coterie.models import device, parameters
from coterie.models.lora_settings import Lora
from coterie.models.open import open_model
from coterie.store import Action, Artifact, Store


@dataclass(frozen=True)
class Request:
    """What `coterie.experts.train` was asked for; see there."""

    store: Store
    action: Action
    start: Artifact
    base: Artifact | None
    sources: tuple[Artifact, ...]
    weights: list[float] | None
    valid: Artifact | None
    kind: ExpertKind
    train: Train
    lora: Lora | None
    seed: int
    label: str
    where: str
    """`cpu` or `cuda`."""
    precision: device.Precision

    def payload(self) -> dict[str, Any]:
        """As JSON values, for other processes."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["store"] = str(self.store.root)
        values["action"] = {f.name: getattr(self.action, f.name) for f in fields(self.action)}
        values |= {name: values[name] and values[name].said() for name in ("start", "base", "valid")}
        values["sources"] = [source.said() for source in self.sources]
        return values | {name: v.model_dump(mode="json") if (v := values[name]) else None for name in ("train", "lora")}

    @classmethod
    def of(cls, payload: dict[str, Any]) -> Request:
        """The reverse of `payload`."""
        values = dict(payload)
        values["store"] = Store(values["store"])
        values["action"] = Action(**values["action"] | {"libraries": tuple(values["action"]["libraries"])})
        values |= {name: values[name] and Artifact.of(values[name]) for name in ("start", "base", "valid")}
        values["sources"] = tuple(Artifact.of(source) for source in values["sources"])
        values |= {"train": Train(**values["train"]), "lora": Lora(**values["lora"]) if values["lora"] else None}
        return cls(**values)

    @cached_property
    def home(self) -> Path:
        """Where checkpoints go."""
        return self.store.scratch(self.action)

    @property
    def output(self) -> Path:
        """What tracking backends write is to outlive the run."""
        return self.store.root / "tracking" / self.action.key[:16] if self.train.report_to else self.home


def opened(request: Request) -> Any:
    """The model to start from, with what the kind trains set trainable and all else frozen."""
    adapter, kind, lora = "adapter_config.json" in request.start.files, request.kind, request.lora or Lora()
    if adapter and kind != "lora":
        raise RequestError(
            f"kind {kind} cannot start from an adapter",
            where=request.label,
            found="a LoRA adapter",
            do="set kind: lora, or start from a whole model",
        )
    model: Any = open_model(request.start, base=request.base, device=request.where, trainable=True)
    if adapter:
        found = model.peft_config["default"]
        if (found.r, found.lora_alpha) != (lora.r, lora.alpha):
            raise RequestError(
                "the adapter to start from has another shape",
                where=f"{request.label} (lora)",
                expected=f"r {found.r}, alpha {found.lora_alpha}",
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


def arguments(request: Request | Job, steps: int) -> TrainingArguments:
    """The Trainer's settings for ``steps`` optimizer steps."""
    train, count = request.train, ranks.count()
    if count > 1 and train.parallel is None:
        raise _overruled(["processes"], {"processes": 1}, {"processes": count})
    batch_size = ranks.batch_size(train)
    return TrainingArguments(
        output_dir=str(request.output),
        max_steps=steps,  # one pass over the order: the Trainer's epochs never restart it
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=train.batch_size * train.accumulation // (batch_size * count),
        train_sampling_strategy="sequential",  # the order is shuffled already
        max_grad_norm=train.clip,
        bf16=request.precision == "bf16",
        use_cpu=request.where == "cpu",
        seed=request.seed % 2**32,
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
        run_name=request.label,
        dataloader_pin_memory=request.where == "cuda",
        ddp_backend=None if count == 1 else ("nccl" if request.where == "cuda" else "gloo"),
        ddp_find_unused_parameters=isinstance(request, Job) and request.sparse,
    )


def require_effective(loop: Trainer, request: Request | Job) -> None:
    """The Trainer takes settings from the environment, and falls back from some that it cannot have: compare."""
    args, accelerator = loop.args, loop.accelerator
    effective = {
        "processes": args.world_size * max(args.n_gpu, 1),
        "distribution": str(accelerator.distributed_type.value),
        "device": args.device.type,
        "precision": accelerator.mixed_precision,
        "sequences": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
    }
    requested = {
        "processes": ranks.count(),
        "distribution": "NO" if ranks.count() == 1 else ("MULTI_GPU" if request.where == "cuda" else "MULTI_CPU"),
        "device": request.where,
        "precision": "bf16" if request.precision == "bf16" else "no",
        "sequences": request.train.batch_size * request.train.accumulation,
    }
    if wrong := [key for key in requested if requested[key] != effective[key]]:
        raise _overruled(wrong, requested, effective)


def _overruled(wrong: list[str], requested: dict[str, Any], effective: dict[str, Any]) -> RequestError:
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
