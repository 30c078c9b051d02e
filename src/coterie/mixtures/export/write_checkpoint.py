"""`coterie export`: a mixture inside the layers as a checkpoint that other tools load, written one tensor at a time.

What is written is read back by the library that people will use, strictly, and compared with the mixture before it appears
under its name; a process that is killed leaves nothing there.

Shapes: S slots, E experts as written, H hidden.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from coterie.errors import RequestError, WorkError
from coterie.mixtures.export import closed_mixture as compare
from coterie.mixtures.export import importing
from coterie.mixtures.export.closed_mixture import ClosedMixture, Seating, model_type, require_plain_gates, seating
from coterie.mixtures.export.export_formats import FORMATS, Format, standard
from coterie.mixtures.layers.layers_files import tensors_of
from coterie.mixtures.layers.tensor_shards import SHARD, Wanted, like, require_room, write_model
from coterie.mixtures.mixture_files import SPECIAL_TOKENS
from coterie.models.initialise import copy_tokenizer
from coterie.spec.json_types import Settings
from coterie.store.durable import dead, discard, owner, sync

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CLOSE = 1e-3
"""Largest difference in log-probability that an export may have from the mixture, both in fp32 from the written values."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    format: str
    experts: int
    """As written; more than the distinct ones where slots were expanded."""
    bytes: int
    difference: float
    """Largest difference in log-probability from the mixture, over the tokens of `compare`: both in fp32, from the values as
    written. For gguf, from the values of the mixture."""
    rounding: float | None = None
    """What the precision costs: the same of the mixture with its values as written from the mixture as it is. None where it
    is a part of ``difference`` (gguf)."""

    @property
    def lines(self) -> list[str]:
        """What the comparison found, for a person."""
        found = [f"read back: largest difference in log-probability {self.difference:.2g}"]
        if self.rounding:
            found.append(f"precision: rounding to the values written moves log-probabilities by up to {self.rounding:.2g}")
        return found


def export(
    folder: str | Path,
    to: str | Path,
    format: str | None = None,
    *,
    expand: bool = False,
    dtype: str | None = None,
    shard_bytes: int = SHARD,
    say: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Write a mixture inside the layers as a checkpoint, read it back and compare.

    Args:
        folder: a mixture directory; or a standard mixture-of-experts checkpoint, which becomes a mixture of ours with
            experts that are equal folded into one.
        format: ``mixtral``, ``qwen2_moe``, ``qwen3_moe``, ``flex_olmo``, ``coterie``; by default the one that the base's
            kind has.
        expand: write one copy of its expert for each slot.
        dtype: ``fp32``, ``bf16``, ``fp16``; the mixture's own by default.
        say: told the size before anything is written.

    Raises:
        RequestError: the format cannot hold it, slots cannot be folded exactly, the disk is too small; nothing is written.
        WorkError: what was read back is not the mixture; nothing is left.
    """
    folder, to = Path(folder), Path(to)
    if (kind := model_type(folder)) not in FORMATS:
        plan = _planned(ClosedMixture.at(folder), format, expand, DTYPES[dtype] if dtype else None)
    elif format not in (None, "coterie") or expand:
        raise RequestError(
            f"a {kind} checkpoint can only become a mixture of ours",
            where="--format",
            expected="coterie, without --expand",
            found=str(format),
            do="import it first, and export that",
        )
    else:
        plan = _imported(folder, DTYPES[dtype] if dtype else None)
    return _write(plan, folder, to, shard_bytes, say)


@dataclass(frozen=True)
class Plan:
    """A checkpoint to be written."""

    format: str
    experts: int
    tensors: list[Wanted]
    config: Settings
    dtype: torch.dtype
    """To which the weights are rounded; fp32: not at all."""
    gates: torch.dtype
    """The same of the gates."""


def _planned(mixture: ClosedMixture, format: str | None, expand: bool, dtype: torch.dtype | None) -> Plan:
    kept = dtype or mixture.dtype
    name = str(kept).removeprefix("torch.")
    if format == "coterie":
        config = json.loads((mixture.folder / "config.json").read_text())
        config["text_config"]["dtype"] = config["dtype"] = name
        return Plan(format, len(mixture.config.experts), _ours(mixture, kept), config, kept, torch.float32)
    base = mixture.config.text_config.to_dict()
    chosen = standard(base, format)
    require_plain_gates(mixture)
    placed = seating(mixture, expand)
    E = len(placed.experts)
    config = chosen.config(base, E, placed.top_k, name)
    return Plan(chosen.name, E, _standard(mixture, chosen, placed, kept), config, kept, kept)


def _imported(folder: Path, dtype: torch.dtype | None) -> Plan:
    """A standard checkpoint as a mixture of ours."""
    config, tensors = importing.read(folder, tensors_of(folder))
    if dtype is not None:
        tensors = [t if ".gate." in t.name else replace(t, dtype=dtype) for t in tensors]
    return Plan("coterie", len(config["experts"]), tensors, config, dtype or torch.float32, torch.float32)


def _write(plan: Plan, folder: Path, to: Path, shard_bytes: int, say: Callable[[str], None]) -> Exported:
    """Say the size, write, read back, compare."""
    size = sum(t.bytes for t in plan.tensors)
    say(f"{plan.format}, {plan.experts} experts, {size / 1e9:,.2f} GB")
    with appearing(to, size) as draft:
        write_model(draft, plan.tensors, plan.config, shard_bytes)
        special = {k: token for k in SPECIAL_TOKENS if (token := plan.config.get(k)) is not None}
        (draft / "generation_config.json").write_text(json.dumps(special, indent=2, sort_keys=True) + "\n")
        copy_tokenizer(folder, draft)
        apart = compare.compared(folder, draft, plan.dtype, plan.gates)
        require_close(apart.written, f"{plan.format} of {folder}")
    return Exported(to, plan.format, plan.experts, size, apart.written, apart.rounding)


def require_close(difference: float, what: str) -> None:
    """WorkError where log-probabilities before and after an export are further apart than `CLOSE`."""
    if not difference <= CLOSE:
        raise WorkError(
            "what was written does not compute what the mixture does",
            where=what,
            expected=f"log-probabilities within {CLOSE}",
            found=f"{difference:.3g} apart",
            kept="nothing was left at --to",
            do="export as coterie, and report this",
        )


@contextmanager
def appearing(to: Path, size: int, what: Literal["folder", "file"] = "folder") -> Iterator[Path]:
    """A folder or a file that appears under its name when it is whole and on the disk, and not at all otherwise."""
    if to.exists() and (what == "file" or not to.is_dir() or any(to.iterdir())):
        raise RequestError("there is something already", where=str(to), expected=f"a new {what}", do="choose another --to")
    require_room(to, size)
    to.absolute().parent.mkdir(parents=True, exist_ok=True)
    for left in to.absolute().parent.glob(f".{to.name}~*"):
        if dead(left.name):
            discard(left)
    draft = to.absolute().with_name(f".{to.name}{owner()}")
    try:
        if what == "folder":
            draft.mkdir()
        yield draft
        for path in [*draft.rglob("*"), draft]:
            sync(path)
        if to.exists():
            to.rmdir()
        os.rename(draft, to.absolute())
        sync(to.absolute().parent)
    finally:
        discard(draft)


def _standard(mixture: ClosedMixture, kind: Format, seating: Seating, dtype: torch.dtype) -> list[Wanted]:
    """Every tensor of a standard checkpoint."""
    blocks, found = mixture.blocks, []
    for name, tensor in mixture.tensors.items():
        plain = name.removeprefix("model.")
        if not any(plain.startswith(f"{block}.") for block in blocks):
            found.append(Wanted(plain, dtype, tensor.shape, tensor.read))
    for block in blocks:
        layer = block.removesuffix(".mlp")
        found.append(like(seating.gates[block], kind.gate(layer), dtype))
        for e, u in enumerate(seating.experts):
            for matrix in kind.parts:
                tensor = mixture.tensors[f"model.{block}.experts.{u}.{matrix}.weight"]
                found.append(Wanted(kind.expert(layer, e, matrix), dtype, tensor.shape, tensor.read))
        for name, shape in kind.zeros(mixture.config.text_config.to_dict()).items():
            found.append(Wanted(f"{layer}.{name}", dtype, shape, partial(torch.zeros, shape)))
    return sorted(found, key=lambda t: _natural(t.name))


def _natural(name: str) -> list[tuple[bool, int | str]]:
    """Order in which layer 2 comes before layer 10."""
    return [(not part.isdigit(), int(part) if part.isdigit() else part) for part in name.split(".")]


def _ours(mixture: ClosedMixture, dtype: torch.dtype) -> list[Wanted]:
    return [
        Wanted(name, torch.float32 if ".gate." in name else dtype, tensor.shape, tensor.read)
        for name, tensor in sorted(mixture.tensors.items(), key=lambda item: _natural(item[0]))
    ]
