"""Checkpoints that are whole or absent, and hold no pickle.

A checkpoint is written beside its place, every file flushed to the disk, a manifest of hashes put with it, and renamed; a
process killed at any point leaves the ones before it as they were. On resuming the newest that verifies is taken, and for
each that does not the reason is printed. Older ones are ordered by step, never by clock; the newest two are kept.

    checkpoint-<step>/trainable.safetensors   parameters that move
                      optimizer.safetensors   AdamW's moments, by parameter and name
                      best.safetensors        with early stopping: the best weights so far
                      state.json              everything else that depends on history
                      trainer_state.json      the Trainer's own
                      manifest.json           size and sha256 of each file
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from coterie.progress import say
from coterie.spec.json_types import Figures
from coterie.store import sha256
from coterie.store.durable import dead, make_directory, owner, sync

KEEP = 2


def save(home: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], texts: Mapping[str, str]) -> Path:
    """Write ``checkpoint-<step>`` under ``home``, of safetensors files by name and other files' texts, and drop all but the
    newest ones."""
    target, temp = home / f"checkpoint-{step}", home / f"saving{owner()}"
    make_directory(temp)
    for name, group in tensors.items():
        save_file({key: tensor.detach().contiguous() for key, tensor in group.items()}, temp / f"{name}.safetensors")
    for name, text in texts.items():
        (temp / name).write_text(text, encoding="utf-8")
    files = {p.name: {"size": p.stat().st_size, "sha256": sha256(p)} for p in sorted(temp.iterdir())}
    (temp / "manifest.json").write_text(json.dumps({"step": step, "files": files}, sort_keys=True), encoding="utf-8")
    for path in [*temp.iterdir(), temp]:
        sync(path)
    shutil.rmtree(target, ignore_errors=True)  # there only if it did not verify
    os.rename(temp, target)
    sync(home)
    for old in _checkpoints(home)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest(home: Path) -> Path | None:
    """The newest checkpoint that verifies; says of each skipped one why."""
    for temp in home.glob("saving~*"):
        if dead(temp.name):  # left half-written
            shutil.rmtree(temp, ignore_errors=True)
    for folder in _checkpoints(home):
        problem = _problem(folder)
        if problem is None:
            return folder
        say(f"  {folder.name} is skipped: {problem}")
    return None


def tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """The tensors of one file of a checkpoint; none if it has no such file."""
    path = folder / f"{name}.safetensors"
    return load_file(path) if path.exists() else {}


def state(folder: Path) -> Figures:
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str]) -> dict[str, Tensor]:
    """An optimizer's state as flat tensors named ``<state>/<parameter>``."""
    return {f"{key}/{name}": value for parameter, name in names.items() for key, value in optimizer.state[parameter].items()}


def load_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[nn.Parameter, str], flat: Mapping[str, Tensor]) -> None:
    """The reverse of `optimizer_tensors`; every parameter must have its state."""
    order = [names[p] for group in optimizer.param_groups for p in group["params"]]
    entries: dict[int, dict[str, Tensor]] = {i: {} for i in range(len(order))}
    place = {name: i for i, name in enumerate(order)}
    for key, tensor in flat.items():
        kind, name = key.split("/", 1)
        entries[place[name]][kind] = tensor
    assert all(entries.values()), "a parameter of the checkpoint has no optimizer state"
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def _checkpoints(home: Path) -> list[Path]:
    """Newest first, by step."""
    found = [(int(m[1]), p) for p in home.glob("checkpoint-*") if (m := re.fullmatch(r"checkpoint-(\d+)", p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def _problem(folder: Path) -> str | None:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if folder.name != f"checkpoint-{manifest['step']}":
            return "it is of another step"
        for name, entry in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["size"] or sha256(path) != entry["sha256"]:
                return f"{name} does not match its sha256"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its manifest cannot be read ({error})"
    return None
