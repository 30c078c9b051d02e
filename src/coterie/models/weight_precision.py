"""The precision in which weights are written: found in the files' headers, kept by what is trained from them, and used by
what is frozen.

A checkpoint in bf16 is trained with fp32 weights in memory, and what comes out is written in bf16 again: it is a checkpoint
of the same family, merges with it tensor by tensor, and is as large and as fast. An adapter stays in fp32, as PEFT keeps it.

Scores, evaluations and answers come from frozen weights: they are used as they are written where the device multiplies that
faster, and in fp32 elsewhere, which computes with the same values. Sums of log-probabilities, log-softmax and routers are in
fp32 either way.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from coterie.models import device
from coterie.models.checkpoint import weight_files
from coterie.models.device import Precision, Requested
from coterie.store import Artifact

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Written = Literal["fp32", "bf16", "fp16"]
_NAMES: dict[str, Written] = {"BF16": "bf16", "F16": "fp16"}


def weight_precision(folder: Path) -> Written:
    """Of most of a model directory's bytes; fp32 for anything wider than the others."""
    return _precision(weight_files(folder))


def opening_precision(folder: Path, base: Path | None = None) -> Precision:
    """In which a model or mixture directory, and the base that an adapter rests on, are opened by default."""
    known = {"router.safetensors", "gates.safetensors", "adapter_model.safetensors"}
    files = [f for place in (folder, base) if place is not None for f in place.rglob("*.safetensors") if f.name not in known]
    return _used(_precision(files), device.pick()) if files else "fp32"


def frozen_precision(requested: Requested, models: Iterable[Path], where: str) -> Precision:
    """In which weights that do not train are used: one precision for all that is compared.

    Args:
        models: directories of all that is whole and was made elsewhere. The widest decides, so that nothing is rounded.
    """
    if requested != "auto":
        return requested
    found = {weight_precision(folder) for folder in models}
    return _used(found.pop(), where) if len(found) == 1 else "fp32"


def _used(written: Written, where: str) -> Precision:
    return "bf16" if written == "bf16" and device.precision("auto", where) == "bf16" else "fp32"


def _precision(files: Iterable[Path]) -> Written:
    from coterie.models.bounded import headers

    bytes_of: Counter[str] = Counter()
    for dtype, size in headers(files):
        bytes_of[dtype] += size * (2 if dtype in _NAMES else 4)
    return _NAMES.get(bytes_of.most_common(1)[0][0], "fp32") if bytes_of else "fp32"


def stated(start: Artifact, kind: str) -> dict[str, str]:
    """What a request and its figures say of an expert that will be written in less than fp32; of others nothing."""
    if kind == "lora" or start.planned:
        return {}
    written = weight_precision(start.path)
    return {} if written == "fp32" else {"written": written}


def torch_dtype(written: Written) -> torch.dtype:
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[written]


def save_model(model: PreTrainedModel, folder: Path, written: Written) -> None:
    """`save_pretrained` of a model whose weights in memory are wider than those to be written; the model stays as it is."""
    if written == "fp32":
        model.save_pretrained(folder)
        return
    dtype = torch_dtype(written)
    cast: dict[int, torch.Tensor] = {}
    state = {
        name: cast.setdefault(tensor.data_ptr(), tensor.detach().to(dtype)) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()  # what is tied stays tied: the library writes it once
    }
    model.save_pretrained(folder, state_dict=state)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
