"""The Trainer's settings for a run, and whether they are in effect.

The Trainer's defaults that would change a result without a word are set here, each with its reason.
"""

from __future__ import annotations

import os

from transformers import Trainer, TrainingArguments

from coterie.errors import RequestError
from coterie.experts import ranks
from coterie.experts.training_job import Job


def arguments(job: Job, steps: int) -> TrainingArguments:
    """The Trainer's settings for ``steps`` optimizer steps."""
    train, count = job.train, ranks.count()
    if count > 1 and train.parallel is None:
        raise _overruled(["processes"], {"processes": 1}, {"processes": count})
    batch_size = ranks.batch_size(train)
    return TrainingArguments(
        output_dir=str(job.output),
        max_steps=steps,  # one pass over the order: the Trainer's epochs never restart it
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=train.batch_size * train.accumulation // (batch_size * count),
        train_sampling_strategy="sequential",  # the order is shuffled already
        max_grad_norm=train.clip,
        bf16=job.precision == "bf16",
        use_cpu=job.where == "cpu",
        seed=job.seed % 2**32,
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
        run_name=job.label,
        dataloader_pin_memory=job.where == "cuda",
        ddp_backend=None if count == 1 else ("nccl" if job.where == "cuda" else "gloo"),
        ddp_find_unused_parameters=job.sparse,
    )


def require_effective(trainer: Trainer, job: Job) -> None:
    """The Trainer takes settings from the environment, and falls back from some that it cannot have: compare."""
    args, accelerator = trainer.args, trainer.accelerator
    effective: dict[str, object] = {
        "processes": args.world_size * max(args.n_gpu, 1),
        "distribution": str(accelerator.distributed_type.value),
        "device": args.device.type,
        "precision": accelerator.mixed_precision,
        "sequences": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
    }
    requested: dict[str, object] = {
        "processes": ranks.count(),
        "distribution": "NO" if ranks.count() == 1 else ("MULTI_GPU" if job.where == "cuda" else "MULTI_CPU"),
        "device": job.where,
        "precision": "bf16" if job.precision == "bf16" else "no",
        "sequences": job.train.batch_size * job.train.accumulation,
    }
    if wrong := [key for key in requested if requested[key] != effective[key]]:
        raise _overruled(wrong, requested, effective)


def _overruled(wrong: list[str], requested: dict[str, object], effective: dict[str, object]) -> RequestError:
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
