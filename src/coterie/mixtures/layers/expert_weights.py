"""Where a merge takes its tensors from: model directories, and adapters worked into the model they rest on.

Names are those of the architecture's own state dict, whatever prefix a file left out, so that base and experts can be
compared tensor by tensor before anything is read.

Shapes: R ranks, I inputs, O outputs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from coterie.errors import RequestError
from coterie.mixtures.layers.tensor_shards import Stored, stored
from coterie.models import lora_files as adapters
from coterie.models.bounded import bounded
from coterie.models.checkpoint import weight_files
from coterie.models.quiet import quiet
from coterie.store.admit import admit

_NO_WEIGHT = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.(masked_)?bias)$")
"""Buffers that old checkpoints hold and no model reads."""


class Directory:
    """A Hugging Face model directory."""

    def __init__(self, folder: Path, name: str = "base") -> None:
        self.folder, self.name = Path(folder), name
        if not (self.folder / "config.json").is_file():
            raise RequestError("not a Hugging Face model directory", where=str(folder), expected="config.json")
        admit(self.folder)
        files = weight_files(self.folder)
        found = stored(files)
        if len(files) > 1:
            self._check_index(found)
        self.tensors = {self._known(key): tensor for key, tensor in found.items() if not _NO_WEIGHT.search(key)}
        if self.tied and (head := self.head) in self.tensors:
            del self.tensors[head]
        needed = {n for n, _ in self.skeleton.named_parameters()}  # a tied head is there once, as the embedding
        missing = sorted(needed - self.tensors.keys())
        if missing:
            raise RequestError("a tensor is missing", where=str(folder), expected=missing[0], do="use a whole checkpoint")

    def _check_index(self, found: Mapping[str, Stored]) -> None:
        named = json.loads((self.folder / "model.safetensors.index.json").read_text())["weight_map"]
        wrong = [n for n, file in named.items() if n not in found or found[n].file.name != file]
        if wrong:
            raise RequestError(
                "a tensor is not where the index says",
                where=str(self.folder),
                expected=f"{wrong[0]} in {named[wrong[0]]}",
                do="fetch the checkpoint again",
            )

    @cached_property
    def config(self) -> PretrainedConfig:
        return AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """The model without numbers."""
        with quiet(), torch.device("meta"), bounded(self.folder, weight_files(self.folder)):
            return AutoModelForCausalLM.from_config(self.config, trust_remote_code=False)

    @cached_property
    def _names(self) -> set[str]:
        return set(self.skeleton.state_dict())

    @property
    def tied(self) -> bool:
        return bool(self.config.tie_word_embeddings)

    @property
    def head(self) -> str:
        """Name of the output embedding's weight."""
        head = self.skeleton.get_output_embeddings()
        return next(f"{name}.weight" for name, module in self.skeleton.named_modules() if module is head)

    def _known(self, key: str) -> str:
        for name in (key, f"{self.skeleton.base_model_prefix}.{key}"):
            if name in self._names:
                return name
        raise RequestError(
            "a tensor is not of the architecture",
            where=str(self.folder),
            found=key,
            do="use a checkpoint of this architecture",
        )

    def where(self, name: str) -> str:
        """The file of a tensor, for messages."""
        return str(self.tensors[name].file)

    def read(self, name: str, scratch: Tensor | None = None) -> Tensor:
        return self.tensors[name].read(scratch)

    def changes(self, name: str) -> bool:
        """Whether a tensor may differ from the base's."""
        return True


class Adapted:
    """A LoRA adapter worked into its base: ``W + B A * scale``, computed in fp32 and rounded once."""

    def __init__(self, base: Directory, folder: Path, name: str) -> None:
        self.base, self.folder, self.name = base, Path(folder), name
        self.config, self.tensors = base.config, base.tensors
        places = adapters.linears(base.skeleton)
        self.updates = {f"{linear}.weight": f for linear, f in adapters.read(self.folder, places).items()}
        self.turned = {f"{n}.weight" for n, m in base.skeleton.named_modules() if isinstance(m, Conv1D)}

    def where(self, name: str) -> str:
        return f"{self.folder / 'adapter_model.safetensors'} on {self.base.where(name)}"

    def changes(self, name: str) -> bool:
        return name in self.updates

    def read(self, name: str, scratch: Tensor | None = None) -> Tensor:
        weight = self.base.read(name, scratch)
        if name not in self.updates:
            return weight
        factors = self.updates[name]
        update_OI = (factors.B_OR.float() @ factors.A_RI.float()) * factors.scale
        return (weight.float() + (update_OI.T if name in self.turned else update_OI)).to(weight.dtype)


Source = Directory | Adapted


def source(folder: Path, base: Directory, name: str) -> Source:
    """An expert from its directory: a whole model, or an adapter of the base."""
    if (Path(folder) / "adapter_config.json").is_file():
        return Adapted(base, folder, name)
    return Directory(folder, name)
