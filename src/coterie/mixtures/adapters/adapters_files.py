"""Mixtures of adapters on disk.

    DIR/config.json              slots, distinct experts and their maturity, the router's settings, the base
    DIR/router.safetensors       rows of every gate
    DIR/base/                    the frozen model
    DIR/experts/NAME/            each distinct expert, a stock PEFT adapter directory
    DIR/generation_config.json, tokenizer files

The store's artifact holds all of it but ``base/`` and ``experts/``, which are linked in where a person looks for it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig

from coterie.errors import RequestError
from coterie.mixtures.adapters.adapters_config import AdaptersConfig
from coterie.models import lora_files as files
from coterie.models.checkpoint import checkpoint, contents
from coterie.models.open import open_model

if TYPE_CHECKING:
    from coterie.mixtures.adapters.adapters_mixture import AdaptersMixture


def read(
    cls: type[AdaptersMixture],
    folder: Path,
    config: AdaptersConfig | None = None,
    options: Mapping[str, Any] | None = None,
    parts: Mapping[str, Path] | None = None,
) -> Any:
    """Open a mixture directory.

    Args:
        options: of `from_pretrained`; dtype and device_map mean something here.
        parts: where directories named in the configuration are, if not beside it; their contents have been verified.
    """
    if not (folder / "config.json").is_file():
        raise RequestError("no mixture is here", where=str(folder), expected="a directory with config.json")
    config = config or AdaptersConfig.from_pretrained(folder)
    options = options or {}
    dtype, place = options.get("dtype") or options.get("torch_dtype") or torch.float32, options.get("device_map")
    place = place.get("", None) if isinstance(place, dict) else place
    if parts is None:  # the store has verified its own
        _same_base(folder, config)
    base = open_model(_part(folder, config.base["dir"], parts), dtype=dtype, device=None if place == "auto" else place)
    places = files.linears(base)
    adapters = [files.read(_part(folder, entry["dir"], parts), places) for entry in config.experts]
    tokenizer = None
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = cls(config, base, adapters, _gates(folder), tokenizer)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.name_or_path = str(folder)
    return model


def _gates(folder: Path) -> dict[str, torch.Tensor]:
    file = folder / "router.safetensors"
    try:
        return load_file(file) if file.is_file() else {}
    except SafetensorError as error:
        raise RequestError("damaged weights", where=str(file), found=str(error)) from None


def _same_base(folder: Path, config: AdaptersConfig) -> None:
    expected, found = config.base["digest"], contents(checkpoint(_part(folder, config.base["dir"], None)))
    if expected is not None and expected != found:
        raise RequestError(
            "the experts were trained on another base",
            where=str(folder / config.base["dir"]),
            expected=expected[:16],
            found=found[:16],
            do="put the base beside them that they were saved with",
        )


def _part(folder: Path, name: str, parts: Mapping[str, Path] | None) -> Path:
    if parts is not None:
        return parts.get(name, folder / name)
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise RequestError("the configuration points outside the mixture", where=str(folder / "config.json"), found=name)
    if not path.is_dir():
        raise RequestError(
            "a part of the mixture is not beside it",
            where=str(path),
            do="export the mixture (coterie run writes OUT/mixtures/NAME), and move the whole directory",
        )
    return path


def save(model: AdaptersMixture, target: Path) -> None:
    """Write a mixture from memory."""
    from coterie.models.initialise import copy_tokenizer

    config = copy.deepcopy(model.config)
    target.mkdir(parents=True, exist_ok=True)
    write_parts(model, target)
    _save_base(model, target / "base")
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(target)
        copy_tokenizer(target, target / "base")
    config.base = {"dir": "base", "digest": contents(checkpoint(target / "base"))}
    config.architectures = [type(model).__name__]
    config.save_pretrained(target)
    model.generation_config.save_pretrained(target)


def write_parts(model: AdaptersMixture, target: Path) -> None:
    """Experts and gates as they are in memory."""
    for name, adapter in model.adapters().items():
        files.write(adapter, model.layout.places, target / "experts" / name, model.dropout)
    write_gates(model.gates(), target)


def write_gates(gates: Mapping[str, torch.Tensor], target: Path) -> None:
    if gates:
        save_file({name: rows.contiguous() for name, rows in gates.items()}, target / "router.safetensors")


def _save_base(model: AdaptersMixture, target: Path) -> None:
    """The frozen model as a stock library opens it: the linears under their own names."""
    state = {}
    stacked = {name for inlet in model.layout.inlets for name in inlet.linears}
    for name, tensor in model.base.state_dict().items():
        owner = next((s for s in stacked if name.startswith(f"{s}.")), None)
        if owner is None:
            state[name] = tensor
        elif name.startswith(f"{owner}.linear."):
            state[owner + name.removeprefix(f"{owner}.linear")] = tensor
    model.base.save_pretrained(target, state_dict=state)
    said = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**said, "use_cache": True}, indent=2, sort_keys=True) + "\n")
