"""The learning rate as a function of the step, and the optimizer it drives."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from coterie.experts.train_settings import Train


def factor(step: int, steps: int, train: Train) -> float:
    """Share of the peak learning rate at ``step`` of ``steps`` (from 0).

    Warm-up of W steps rises in a straight line and reaches the peak at step W; it does not start at zero, so that no
    step is wasted. ``cosine`` falls to ``floor`` at ``steps``, ``linear`` to zero; ``wsd`` stays at the peak and falls in a
    straight line to ``floor`` over the last ``decay`` share.
    """
    warm = round(train.warmup * steps)
    if step < warm:
        return (step + 1) / (warm + 1)
    if train.schedule == "constant":
        return 1.0
    begin = max(steps - round(train.decay * steps), warm) if train.schedule == "wsd" else warm
    progress = min(max(step - begin, 0) / max(steps - begin, 1), 1.0)
    if train.schedule == "linear":
        return 1.0 - progress
    if train.schedule == "cosine":
        progress = (1.0 - math.cos(math.pi * progress)) / 2
    return 1.0 - (1.0 - train.floor) * progress


def optimizer(model: nn.Module, train: Train) -> torch.optim.AdamW:
    """Fused AdamW over what is trainable; weight decay on matrices only, not on norms and biases."""
    moving = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in moving if p.ndim >= 2], "weight_decay": train.weight_decay},
        {"params": [p for p in moving if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=train.learning_rate, betas=(train.beta1, train.beta2), fused=True
    )


def scheduler(adamw: torch.optim.Optimizer, steps: int, train: Train) -> LambdaLR:
    return LambdaLR(adamw, partial(factor, steps=steps, train=train))
