"""A mixture inside the layers on disk.

    DIR/config.json                    base's configuration, slots, distinct experts, gate
    DIR/model.safetensors.index.json   which file holds which tensor
    DIR/gates.safetensors              the gates, [S, H] a layer
    DIR/experts/model-*.safetensors    everything else: each distinct expert once
    DIR/generation_config.json, tokenizer files

Stock `from_pretrained` follows the index. In the store the experts are an artifact of their own, so that mixtures that
differ in nothing but their gates share it; `save_pretrained` from memory writes one plain folder, which opens as well.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from coterie.errors import RequestError
from coterie.mixtures.layers.layers_mixture import LayersMixture
from coterie.mixtures.layers.merge import Merge
from coterie.mixtures.layers.tensor_shards import INDEX, SHARD, Stored, index, like, require_room, stored, write
from coterie.mixtures.mixture_files import SPECIAL_TOKENS
from coterie.models.checkpoint import weight_files
from coterie.models.initialise import copy_tokenizer
from coterie.models.quiet import quiet
from coterie.spec.json_types import Figures, Settings

GATES = "gates.safetensors"


def write_experts(merge: Merge, folder: Path, shard_bytes: int = SHARD) -> Figures:
    """Write all tensors but the gates; returns their figures.

    Raises:
        RequestError: the experts do not go together, or the disk is too small.
    """
    differences = merge.check()
    wanted = list(merge.wanted())
    total = sum(t.bytes for t in wanted)
    require_room(folder, total)
    write(folder, wanted, shard_bytes, ahead=merge.ahead)
    return {"bytes": total, "tensors": len(wanted), "shared": merge.shared, "difference": differences}


def write_gates(gates: Mapping[str, Tensor], folder: Path) -> None:
    """Write gates by name, as `gate_names` gives them, in fp32."""
    write(folder, [like(tensor, name, torch.float32) for name, tensor in gates.items()], SHARD, "gates")


def write_rest(
    settings: Settings,
    tokenizer: Path,
    experts: Mapping[str, Stored],
    gates: Mapping[str, Tensor],
    folder: Path,
    place: str = "experts",
) -> None:
    """Write configuration, gates, index and tokenizer: all but the experts, which lie in ``place``."""
    write_gates(gates, folder)
    of_gates = stored([folder / GATES])
    where = {name: f"{place}/{tensor.file.name}" for name, tensor in experts.items()} | dict.fromkeys(of_gates, GATES)
    size = sum(t.bytes for t in (*experts.values(), *of_gates.values()))
    (folder / INDEX).write_text(index(where, size))
    (folder / "config.json").write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
    special = {k: settings[k] for k in SPECIAL_TOKENS if settings[k] is not None}
    (folder / "generation_config.json").write_text(json.dumps(special, indent=1, sort_keys=True) + "\n")
    copy_tokenizer(tokenizer, folder)


def tensors_of(folder: Path) -> dict[str, Stored]:
    """Every tensor of a mixture directory.

    Raises:
        RequestError: a file is missing, damaged, or outside the directory.
    """
    if not (folder / INDEX).is_file():
        return stored(weight_files(folder))
    names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder.resolve()) or not name.endswith(".safetensors"):
            raise RequestError("the index points outside the directory", where=str(folder / INDEX), found=name)
        if not (folder / name).is_file():
            raise RequestError("a part of the weights is missing", where=str(folder / name), expected="named in the index")
    return stored([folder / name for name in names])


def open_parts(settings: Settings, experts: Path, gates: Mapping[str, Tensor], device: str = "cpu") -> LayersMixture:
    """A mixture from its configuration, the folder of its experts and gates that are in memory, in fp32."""
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        found = stored(sorted(experts.glob("model*.safetensors")))
        write_rest(settings, folder, found, gates, folder, experts.absolute().as_posix())
        with quiet():
            return LayersMixture.from_pretrained(folder, dtype=torch.float32, device_map=device)
