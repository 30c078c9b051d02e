"""Mixtures of adapters on disk.

    DIR/config.json              slots, distinct experts and their maturity, the router's settings, the base
    DIR/router.safetensors       rows of every gate
    DIR/base/                    the frozen model
    DIR/experts/NAME/            each distinct expert, a stock PEFT adapter directory
    DIR/generation_config.json, tokenizer files

The store's artifact holds all of it but ``base/`` and ``experts/``, which are linked in where a person looks for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Self, TypedDict

from transformers import AutoConfig, PreTrainedModel

from coterie.errors import RequestError
from coterie.mixtures.adapters.layout import Layout
from coterie.mixtures.mixture_files import MixtureConfig, Opening, context_of, part
from coterie.models import lora_files
from coterie.models.checkpoint import checkpoint, contents
from coterie.models.initialise import copy_tokenizer
from coterie.models.lora_files import Adapter
from coterie.models.open import open_model
from coterie.spec.json_types import Settings


class Counts(TypedDict):
    """Parameters by part."""

    experts: dict[str, int]
    """By name."""
    router: int
    base: int
    trained: int
    """How many of them all train."""


class AdaptersConfig(MixtureConfig):
    """Slots over LoRA experts, the gates and their policy, and the base.

    Of an expert also ``"dir"``, ``"digest"`` and ``"maturity"``. ``base``: ``{"dir", "digest"}``. Directories are relative
    to the mixture's. ``router``: ``{"kind", "scope", "reads", "top_k", "top_p", "temperature", ...}``.
    """

    model_type = "coterie_adapters"

    base: dict[str, Any] = field(default_factory=dict)
    router: dict[str, Any] = field(default_factory=dict)
    vocab_size: int = 0
    max_position_embeddings: int = 0
    use_cache: bool = True

    @classmethod
    def on_base(cls, settings: Settings, base: Path) -> Self:
        """The configuration of a mixture, its settings as `mixture_settings` gives them, on the base in a directory."""
        size = json.loads((base / "config.json").read_text())["vocab_size"]
        context = context_of(base)
        return cls(**settings, vocab_size=size, max_position_embeddings=context, architectures=["AdaptersMixture"])


AutoConfig.register(AdaptersConfig.model_type, AdaptersConfig, exist_ok=True)


def open_parts(
    folder: Path, config: AdaptersConfig, opening: Opening, elsewhere: Mapping[str, Path] | None = None
) -> tuple[PreTrainedModel, list[Adapter]]:
    """The base and the distinct experts of a mixture directory.

    Args:
        elsewhere: where parts are, if not beside the configuration; their contents have been verified.
    """
    at_base = part(folder, config.base["dir"], "the base", elsewhere)
    expected = config.base["digest"]
    if elsewhere is None and expected is not None and expected != (found := contents(checkpoint(at_base))):
        raise RequestError(
            "the experts were trained on another base",
            where=str(at_base),
            expected=expected[:16],
            found=found[:16],
            do="put the base beside them that they were saved with",
        )
    base = open_model(at_base, dtype=opening.dtype, device=opening.device)
    places = lora_files.linears(base)
    homes = [part(folder, entry["dir"], f"the expert {entry['name']!r}", elsewhere) for entry in config.experts]
    return base, [lora_files.read(home, places) for home in homes]


def write_base(base: PreTrainedModel, layout: Layout, folder: Path) -> str:
    """The frozen model as a stock library opens it: the linears under their own names. Returns the digest of its contents.

    The tokenizer in ``folder`` goes with it.
    """
    state, target = {}, folder / "base"
    stacked = {name for inlet in layout.inlets for name in inlet.linears}
    for name, tensor in base.state_dict().items():
        owner = next((s for s in stacked if name.startswith(f"{s}.")), None)
        if owner is None:
            state[name] = tensor
        elif name.startswith(f"{owner}.linear."):
            state[owner + name.removeprefix(f"{owner}.linear")] = tensor
    base.save_pretrained(target, state_dict=state)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "use_cache": True}, indent=2, sort_keys=True) + "\n")
    copy_tokenizer(folder, target)
    return contents(checkpoint(target))
