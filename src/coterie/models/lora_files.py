"""LoRA experts on disk: stock PEFT adapter directories, in and out, each checked against the base it is to sit on.

What a mixture cannot say is refused by name instead of dropped: weights that replace the base's (`modules_to_save`, trained
biases, DoRA, starts that change the base), adapters of embeddings or of the head.

Shapes: R ranks, I inputs, O outputs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from coterie.errors import RequestError
from coterie.models.adapter_names import plain_names
from coterie.models.bounded import finite
from coterie.models.parameters import no_layers
from coterie.models.stack import shape_of
from coterie.models.stack_blocks import Factors
from coterie.spec.json_file import read_json
from coterie.spec.settings import check_name
from coterie.store.admit import admit

if TYPE_CHECKING:
    from peft import LoraConfig

Adapter = dict[str, Factors]
"""An expert's update of each linear, by the linear's name in the base."""

Shapes = Mapping[str, tuple[int, int]]
"""(inputs, outputs) of a base's linears, by name."""

PREFIX = "base_model.model."
_UNTOLD = {
    "use_dora": "DoRA",
    "lora_bias": "biases of its own",
    "modules_to_save": "modules saved whole",
    "target_parameters": "updates of bare parameters",
    "trainable_token_indices": "trained tokens",
    "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "a router of its own",
}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


def linears(base: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """The linears of a model that can carry updates, the head left out: (inputs, outputs) by name."""
    head = base.get_output_embeddings()
    found = {name: shape_of(module) for name, module in base.named_modules() if module is not head}
    return {name: shape for name, shape in found.items() if shape is not None}


def read(folder: Path, places: Shapes) -> Adapter:
    """An adapter of a base whose linears are ``places``; RequestError if it is no LoRA adapter, not whole, not finite, or
    not of this base; it names the first tensor."""
    admit(folder)
    config = _config(folder, places)
    saved = tensors(folder)
    halves: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in saved.items():
        name, _, half = key.removeprefix(PREFIX).rpartition(".lora_")
        half = half.removesuffix(".weight")
        if not key.startswith(PREFIX) or half not in ("A", "B"):
            digits = half.partition(".")[2].isdigit()
            raise RequestError(
                "the adapter was saved under a name of digits, and PEFT loses weights of such"
                if digits
                else "a tensor of the adapter is not of a linear's update",
                where=str(folder),
                expected=f"{PREFIX}NAME.lora_A.weight and lora_B.weight",
                found=key,
                do="save it again under a name with a letter" if digits else "train it on linear layers only",
            )
        if name not in places:
            raise RequestError(
                "the adapter is of another base: it updates a linear that this one does not have",
                where=str(folder),
                found=name,
                expected=f"one of {len(places)}, such as {next(iter(places), 'none')}",
                do="name the base it was trained on",
            )
        if not finite(tensor):
            raise RequestError("the adapter's weights are not finite", where=f"{folder} ({key})", found="NaN or infinity")
        halves.setdefault(name, {})[half] = tensor
    _all_there(folder, config, places, halves)
    adapter = {}
    for name, pair in halves.items():
        (inputs, outputs), A_RI, B_OR = places[name], pair["A"], pair["B"]
        r = A_RI.shape[0]
        if A_RI.shape != (r, inputs) or B_OR.shape != (outputs, r):
            raise RequestError(
                "the adapter does not fit the base",
                where=f"{folder} ({name})",
                expected=f"A [r, {inputs}] and B [{outputs}, r]",
                found=f"A {list(A_RI.shape)} and B {list(B_OR.shape)}",
                do="name the base it was trained on",
            )
        alpha = _pattern(config.alpha_pattern, name, config.lora_alpha)
        adapter[name] = Factors(A_RI, B_OR, alpha / (r**0.5 if config.use_rslora else r))
    return {name: adapter[name] for name in places if name in adapter}


def _config(folder: Path, places: Shapes) -> LoraConfig:
    from peft import LoraConfig

    path = folder / "adapter_config.json"
    if not path.is_file():
        raise RequestError("no adapter is here", where=str(folder), expected="a directory with adapter_config.json")
    given = read_json(path)
    if given.get("peft_type") != "LORA":
        raise RequestError(
            "not a LoRA adapter", where=str(path), expected="peft_type LORA", found=str(given.get("peft_type"))
        )
    for key, what in _UNTOLD.items():
        if given.get(key):
            raise RequestError(
                f"the adapter has {what}, which are more than an update of linears",
                where=f"{path} ({key})",
                found=str(given[key]),
                do="train it as a plain LoRA adapter",
            )
    if given.get("bias", "none") != "none":
        raise RequestError("the adapter has trained biases", where=f"{path} (bias)", found=str(given["bias"]))
    start = str(given.get("init_lora_weights", "")).lower()
    if start.startswith(_CHANGES_BASE):
        raise RequestError(
            "the adapter's start changed its base, so it does not fit the base as it is",
            where=f"{path} (init_lora_weights)",
            found=start,
            do="convert it to a plain adapter on saving",
        )
    given = {**given, **plain_names(given, places, path)}
    known = LoraConfig.__dataclass_fields__
    return LoraConfig(**{k: v for k, v in given.items() if k in known and k not in ("peft_type", "runtime_config")})


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of an adapter directory, by name; RequestError if there are none, or a pickle in their place."""
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        pickled = (folder / "adapter_model.bin").exists()
        raise RequestError(
            "pickled weights are refused: opening them can run code" if pickled else "the adapter has no weights",
            where=str(folder),
            expected=path.name,
        )
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise RequestError("damaged weights", where=str(path), found=str(error), do="fetch the file again") from None
    if not found:
        raise RequestError(
            "the adapter's file holds no weights", where=str(path), do="save it again; PEFT writes none for names of digits"
        )
    return found


def _all_there(folder: Path, config: LoraConfig, places: Shapes, halves: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Every linear that the configuration names must have both halves."""
    from peft.tuners.tuners_utils import check_target_module_exists

    whole = config.target_modules == "all-linear"
    named = [name for name in places if whole or check_target_module_exists(config, name)]
    for name in dict.fromkeys([*named, *halves]):
        missing = [half for half in "AB" if half not in halves.get(name, {})]
        if missing:
            raise RequestError(
                "the adapter is not whole: a tensor that its configuration promises is missing",
                where=str(folder),
                expected=f"{PREFIX}{name}.lora_{missing[0]}.weight",
                found=f"{len(halves)} of {len(named)} linears",
                do="save it again; PEFT drops weights of adapters whose names are digits",
            )
        if name not in named:
            raise RequestError(
                "the adapter has a tensor that its configuration does not name",
                where=str(folder),
                expected=str(sorted(config.target_modules or ())),
                found=name,
            )


def _pattern(patterns: Mapping[str, float] | None, name: str, default: float) -> float:
    from peft.utils.other import get_pattern_key

    patterns = patterns or {}
    return patterns.get(get_pattern_key(list(patterns), name), default)


def write(adapter: Mapping[str, Factors], places: Shapes, folder: Path, dropout: float = 0.0) -> None:
    """Write a stock PEFT adapter directory; `peft.PeftModel.from_pretrained` opens it."""
    from peft import LoraConfig

    check_name(folder.name)
    leaves = {name.rpartition(".")[2] for name in adapter}
    covered = {name for name in places if name.rpartition(".")[2] in leaves}
    rank = Counter(f.A_RI.shape[0] for f in adapter.values()).most_common(1)[0][0]
    alphas = {name: f.scale * f.A_RI.shape[0] for name, f in adapter.items()}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=sorted(leaves if covered == adapter.keys() else adapter),
        rank_pattern={name: f.A_RI.shape[0] for name, f in adapter.items() if f.A_RI.shape[0] != rank},
        alpha_pattern={name: a for name, a in alphas.items() if a != alpha},
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    neutral(folder)
    written = {}
    for name, factors in adapter.items():
        written[f"{PREFIX}{name}.lora_A.weight"] = factors.A_RI.detach().cpu().contiguous().clone()
        written[f"{PREFIX}{name}.lora_B.weight"] = factors.B_OR.detach().cpu().contiguous().clone()
    save_file(written, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def neutral(folder: Path) -> None:
    """Take out of an adapter directory what differs between machines and runs: the base's path (its digest is in the
    facts), the order of a set, and a model card."""
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = None
    if isinstance(config["target_modules"], list):
        config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def fresh(places: Shapes, targets: str | tuple[str, ...], r: int, alpha: float, seed: int) -> Adapter:
    """A new expert as PEFT starts one: A uniform as a linear's weight, B zero, so that it changes nothing yet. RequestError
    if no linear is called so."""
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = LoraConfig(target_modules=targets if isinstance(targets, str) else list(targets))
    named = [n for n in places if targets == "all-linear" or check_target_module_exists(config, n)]
    if not named:
        raise no_layers(targets)
    generator = torch.Generator().manual_seed(seed)
    adapter = {}
    for name in named:
        inputs, outputs = places[name]
        A_RI = nn.init.kaiming_uniform_(torch.empty(r, inputs), a=5**0.5, generator=generator)
        adapter[name] = Factors(A_RI, torch.zeros(outputs, r), alpha / r)
    return adapter
