"""What mixture directories and their configurations have in common, wherever the experts meet.

    DIR/config.json, generation_config.json, tokenizer files
    DIR/...                  the parts that the configuration names, by place

Directories in ``config.json`` are relative, so a mixture can be moved; none of them lies outside.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from coterie.errors import RequestError
from coterie.models import device
from coterie.models.bounded import require_finite
from coterie.models.initialise import copy_tokenizer
from coterie.routing.eligibility import Eligibility
from coterie.spec.json_types import Settings
from coterie.store.admit import admit

SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Names under which a configuration says what generation goes by."""


class Slot(TypedDict):
    """A slot of a mixture."""

    name: str
    expert: int
    """Number of its expert."""


class MixtureConfig(PretrainedConfig):
    """Slots over experts, and the special tokens of their tokenizer.

    ``experts``: one entry for each distinct expert, with its ``name``; what else
    it says depends on the place.
    """

    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 (the library's own form)

    slots: list[Slot] = field(default_factory=list)
    experts: list[dict[str, Any]] = field(default_factory=list)
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    @property
    def names(self) -> list[str]:
        """Of the distinct experts."""
        return [expert["name"] for expert in self.experts]

    @property
    def slot_to_expert(self) -> list[int]:
        """The expert in each slot."""
        return [slot["expert"] for slot in self.slots]

    @property
    def counts(self) -> list[int]:
        """Slots of each distinct expert."""
        slots = Counter(self.slot_to_expert)
        return [slots[u] for u in range(len(self.names))]

    @property
    def eligibility(self) -> Eligibility:
        """Which experts a date may use: all of them, unless the place has a rule."""
        return Eligibility("all", tuple(self.names))


HARMLESS = set(
    "_commit_hash _from_auto _from_pipeline adapter_kwargs adapter_name cache_dir code_revision disable_mmap "
    "force_download local_files_only low_cpu_mem_usage offload_folder proxies resume_download revision token "
    "tqdm_class trust_remote_code use_safetensors weights_only".split()
)
"""Options of `from_pretrained` about downloading or loading that cannot change a mixture in a local directory."""
_DEVICE_MAPS = {"auto", "balanced", "balanced_low_0", "sequential"}


@dataclass(frozen=True)
class Opening:
    """How the models of a mixture are opened."""

    dtype: torch.dtype | str = torch.float32
    """``auto``: as each was saved."""
    device: torch.device | str | None = None

    @classmethod
    def of(cls, options: Mapping[str, object]) -> Opening:
        """From keyword arguments of `from_pretrained`.

        Raises:
            RequestError: one would change something, and has no meaning for a mixture. At its default it is none.
        """
        place = options.get("device_map")
        if isinstance(place, dict) and place.keys() == {""}:
            place = place[""]
        if isinstance(place, str) and place in _DEVICE_MAPS:
            place = device.pick()
        if isinstance(place, int):
            place = torch.device(place)
        known = {"dtype", "torch_dtype", *(() if isinstance(place, dict) else ("device_map",))}
        for name, value in options.items():
            default = not value or (name, value) == ("attn_implementation", "sdpa")
            if not default and name not in known | HARMLESS:
                raise RequestError(
                    f"{name} has no meaning for a mixture",
                    where="from_pretrained",
                    expected="config, device_map (one device), dtype or output_loading_info",
                    found=str(value),
                )
        dtype = options.get("dtype") or options.get("torch_dtype") or torch.float32
        assert isinstance(dtype, torch.dtype | str)
        assert place is None or isinstance(place, torch.device | str)
        return cls(dtype, place)


def mixture_at(folder: Path) -> Path:
    """The directory itself.

    Raises:
        RequestError: no mixture is there.
    """
    if not (folder / "config.json").is_file():
        raise RequestError("no mixture is here", where=str(folder), expected="a directory with config.json")
    return folder


def part(folder: Path, name: str, what: str, elsewhere: Mapping[str, Path] | None = None) -> Path:
    """A directory that a configuration names.

    Args:
        what: is there, for messages.
        elsewhere: where directories are that do not lie beside the configuration, by name.

    Raises:
        RequestError: it lies outside the mixture's, or is not there.
    """
    if elsewhere is not None and name in elsewhere:
        return elsewhere[name]
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise RequestError("the configuration points outside the mixture", where=str(folder / "config.json"), found=name)
    if not path.is_dir():
        raise RequestError(
            f"{what} is not beside the mixture",
            where=str(path),
            do="export the mixture (coterie run writes OUT/mixtures/NAME), and move the whole directory",
        )
    return path


def open_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a directory, if there is one."""
    if not (folder / "tokenizer_config.json").is_file():
        return None
    admit(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a file can make a library raise
        found = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RequestError("the tokenizer cannot be opened", where=str(folder), found=found) from error


def special_tokens(source: PreTrainedTokenizerBase | PretrainedConfig | None) -> Settings:
    """Ids under `SPECIAL_TOKENS`; padding is the end of text where there is none of its own."""
    bos, eos, pad = (getattr(source, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad"))
    if pad is None:
        pad = eos[0] if isinstance(eos, list) else eos
    return {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}


def write_configuration(config: MixtureConfig, tokenizer: Path, folder: Path) -> None:
    """The configuration, the tokenizer, and its special tokens where generation looks for them."""
    copy_tokenizer(tokenizer, folder)
    special = special_tokens(open_tokenizer(folder))
    config.update(special)
    config.save_pretrained(folder)
    GenerationConfig(**special).save_pretrained(folder)


def read_router(folder: Path) -> dict[str, torch.Tensor]:
    """Parameters of a router by name, of gates inside a model rows [U, H] of each; nothing for equal weights.

    Raises:
        RequestError: the file is damaged, or a number in it is none.
    """
    file = folder / "router.safetensors"
    try:
        tensors = load_file(file) if file.is_file() else {}
    except SafetensorError as error:
        raise RequestError("damaged weights", where=str(file), found=str(error)) from None
    require_finite(tensors.items(), file)
    return tensors


def write_router(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    """What `read_router` reads."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, folder / "router.safetensors")


def context_of(model: Path) -> int:
    """Longest sequence that a model directory supports, in tokens."""
    config = json.loads((model / "config.json").read_text())
    return next((config[k] for k in ("max_position_embeddings", "n_positions") if config.get(k)), 2**31 - 1)


MEANING = ("model", "added_tokens", "normalizer", "pre_tokenizer")
"""Parts of tokenizer.json that decide which ids a text becomes."""


def require_same_tokenizer(experts: Sequence[tuple[str, Path]]) -> None:
    """Compare ``tokenizer.json`` of experts, given as (name, directory); one without a file is taken at its word.

    Raises:
        RequestError: names two experts and the first difference.
    """
    first: tuple[str, bytes] | None = None
    for name, folder in experts:
        file = folder / "tokenizer.json"
        if not file.is_file():
            continue
        data = file.read_bytes()
        if first is None:
            first = (name, data)
        elif data != first[1] and (found := difference(json.loads(first[1]), json.loads(data))):
            raise RequestError(
                f"experts {first[0]!r} and {name!r} have different tokenizers, so their probabilities cannot be mixed",
                where=str(file),
                found=found,
                do="train both with one tokenizer",
            )


def difference(one: Settings, two: Settings) -> str | None:
    """The first difference that changes what ids mean; None if there is none."""
    vocabularies = [t["model"].get("vocab") or {} for t in (one, two)]
    a, b = (v if isinstance(v, dict) else {str(token): i for i, token in enumerate(v)} for v in vocabularies)
    if len(a) != len(b):
        return f"{len(a)} and {len(b)} tokens"
    if a != b:
        token = min((t for t in a.keys() | b.keys() if a.get(t) != b.get(t)), key=lambda t: (a.get(t, len(a)), t))
        return f"token {token!r} is {a.get(token, 'absent')} and {b.get(token, 'absent')}"
    return next((f"{part} differs" for part in MEANING if one.get(part) != two.get(part)), None)


def require_same_vocabulary(sizes: dict[str, int]) -> None:
    """Rows of the output embedding of each expert, by name.

    Raises:
        RequestError: names two experts whose sizes differ.
    """
    (first, size), *others = sizes.items()
    for name, other in others:
        if other != size:
            raise RequestError(
                f"experts {first!r} and {name!r} have different vocabularies, so their probabilities cannot be mixed",
                expected=f"{size} tokens",
                found=f"{other} tokens",
                do="train both with one tokenizer",
            )
