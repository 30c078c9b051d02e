"""Mixtures on disk.

    DIR/config.json              slots, distinct experts, router, rule of eligibility
    DIR/router.safetensors       the router's parameters, if it has any
    DIR/generation_config.json, tokenizer files
    DIR/experts/NAME/            each distinct expert, as a stock library writes it; the base of LoRA experts beside them

The store's artifact holds all of it but ``experts/``, and names experts by digest: ten mixtures of an expert store it once.
`materialise` puts the parts together with hard links. Directories in ``config.json`` are relative, so it can be moved.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, GenerationConfig

from coterie.errors import RequestError
from coterie.mixtures.outputs.outputs_config import OutputsConfig
from coterie.mixtures.same_tokenizer import require_same_tokenizer, require_same_vocabulary
from coterie.mixtures.seats import Seat, eligibility
from coterie.models.checkpoint import TOKENIZER_FILES
from coterie.models.open import open_model
from coterie.routing.output_routers import OutputRouter
from coterie.routing.routers import RouterModule
from coterie.store import Artifact

if TYPE_CHECKING:
    from coterie.mixtures.outputs.outputs_mixture import OutputsMixture

OPTIONS = {"dtype", "torch_dtype", "device_map", "config"}
"""Options of `from_pretrained` that mean something for a mixture."""
HARMLESS = {
    "_commit_hash",
    "_from_auto",
    "adapter_kwargs",
    "cache_dir",
    "code_revision",
    "force_download",
    "local_files_only",
    "low_cpu_mem_usage",
    "proxies",
    "resume_download",
    "revision",
    "token",
    "trust_remote_code",
    "use_safetensors",
    "weights_only",
}
"""Options about downloading or loading that cannot change a mixture in a local directory."""


def write(said: dict[str, Any], seats: Sequence[Seat], router: Artifact | None, tokenizer: Artifact, folder: Path) -> None:
    """Write all of a mixture but its experts; see `coterie.mixtures.assemble`."""
    eligibility(said["eligible"], [m.name for m in seats], said["experts"])
    require_same_tokenizer([(m.name, m.artifact.path) for m in seats])
    require_same_vocabulary({m.name: m.vocab_size for m in seats})
    for name in TOKENIZER_FILES & tokenizer.files.keys():
        shutil.copyfile(tokenizer.file(name), folder / name)
    reader = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    special: dict[str, Any] = {f"{kind}_token_id": getattr(reader, f"{kind}_token_id") for kind in ("bos", "eos")}
    special["pad_token_id"] = reader.pad_token_id if reader.pad_token_id is not None else reader.eos_token_id
    context = min(_context(m) for m in seats)
    config = OutputsConfig(
        **said, vocab_size=seats[0].vocab_size, max_position_embeddings=context, **special, architectures=["OutputsMixture"]
    )
    config.save_pretrained(folder)
    GenerationConfig(**special).save_pretrained(folder)
    if router:
        shutil.copyfile(router.file("router.safetensors"), folder / "router.safetensors")


def _context(member: Seat) -> int:
    config = json.loads((member.base or member.artifact).file("config.json").read_text())
    return next((config[k] for k in ("max_position_embeddings", "n_positions") if config.get(k)), 2**31 - 1)


def read_router(folder: Path, config: OutputsConfig) -> RouterModule:
    """The router of a mixture directory, strictly.

    Raises:
        RequestError: parameters are missing, unexpected or of another shape.
    """
    file = folder / "router.safetensors"
    tensors = load_file(file) if file.is_file() else {}
    rows = tensors["tokens.table_V2W"].shape[0] if "tokens.table_V2W" in tensors else config.vocab_size
    router = OutputRouter.model_validate(config.router).build(len(config.experts), rows)
    try:
        router.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        found = str(error).splitlines()[-1].strip()
        raise RequestError("the router's parameters are not those of its kind", where=str(file), found=found) from None
    return router.eval()


def read(cls: type[OutputsMixture], folder: Path, config: OutputsConfig | None, options: dict[str, Any]) -> Any:
    """Open a mixture directory; see `OutputsMixture.from_pretrained`."""
    unknown = sorted(k for k, v in options.items() if v is not None and k not in OPTIONS | HARMLESS)
    if unknown:
        raise RequestError(f"{unknown[0]} has no meaning for a mixture", expected=", ".join(sorted(OPTIONS)))
    if not (folder / "config.json").is_file():
        raise RequestError("no mixture is here", where=str(folder), expected="a directory with config.json")
    if config is None:
        config = OutputsConfig.from_pretrained(folder)
    dtype = options.get("dtype") or options.get("torch_dtype")
    place = options.get("device_map")
    if isinstance(place, dict):
        place = place.get("", None)
    experts = []
    for entry in config.experts:
        home = _inside(folder, entry["dir"])
        if not home.is_dir():
            raise RequestError(
                f"the expert {entry['name']!r} is not beside the mixture",
                where=str(home),
                do="export the mixture (coterie run writes OUT/mixtures/NAME), and move the whole directory",
            )
        base = _inside(folder, entry["base"]) if entry["base"] else None
        experts.append(
            open_model(home, base=base, device=None if place == "auto" else place, **({"dtype": dtype} if dtype else {}))
        )
    tokenizer = None
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = cls(config, experts, read_router(folder, config), tokenizer)
    nn.Module.to(model, experts[0].device)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.name_or_path = str(folder)
    return model


def _inside(folder: Path, name: str) -> Path:
    """A directory that a configuration names, which must lie within the mixture's."""
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise RequestError("the configuration points outside the mixture", where=str(folder / "config.json"), found=name)
    return path


def save(model: OutputsMixture, target: Path) -> None:
    """Write a mixture from memory; see `OutputsMixture.save_pretrained`."""
    origin = Path(model.name_or_path) if model.name_or_path else None
    if origin is not None and target.exists() and target.resolve() == origin.resolve():
        raise RequestError("the mixture was opened from there", where=str(target), do="save it to another directory")
    config = copy.deepcopy(model.config)
    target.mkdir(parents=True, exist_ok=True)
    for entry, expert in zip(config.experts, model.experts, strict=True):
        entry |= {"dir": f"experts/{entry['name']}", "digest": None}  # in memory it may have changed
        if hasattr(expert, "peft_config") and not entry["base"]:
            raise RequestError(
                f"the base of {entry['name']!r} would be missing", do="merge the adapter into it first (merge_and_unload)"
            )
        expert.save_pretrained(target / entry["dir"])  # type: ignore[operator]
        if entry["base"]:
            if origin is None or not (origin / entry["base"]).is_dir():
                raise RequestError(f"the base of {entry['name']!r} is gone", where=f"{origin}/{entry['base']}")
            shutil.copytree(origin / entry["base"], target / entry["base"], dirs_exist_ok=True)
    config.architectures = [type(model).__name__]
    config.save_pretrained(target)
    model.generation_config.save_pretrained(target)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(target)
    state = {name: tensor.contiguous() for name, tensor in model.router.state_dict().items()}
    save_file(state, target / "router.safetensors")
