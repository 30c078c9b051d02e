"""Whoever promises to run no model can be held to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import PreTrainedModel


@contextmanager
def forward_passes() -> Iterator[list[str]]:
    """Class names of the transformers models that are run inside, one entry a call."""
    found: list[str] = []

    def note(module: nn.Module, *_: object) -> None:
        if isinstance(module, PreTrainedModel):
            found.append(type(module).__name__)

    handle = register_module_forward_pre_hook(note)
    try:
        yield found
    finally:
        handle.remove()
