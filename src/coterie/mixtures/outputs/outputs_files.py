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
import shutil
from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel

from coterie.errors import RequestError
from coterie.mixtures.mixture_files import (
    MixtureConfig,
    Opening,
    context_of,
    part,
    read_router,
    require_same_tokenizer,
    require_same_vocabulary,
    write_configuration,
)
from coterie.mixtures.seats import Rule, Seat, eligibility
from coterie.models.open import open_model
from coterie.routing.eligibility import Eligibility
from coterie.routing.logits_to_weights import Policy
from coterie.routing.output_routers import OutputRouter
from coterie.routing.routers import RouterModule
from coterie.spec.json_types import Settings
from coterie.store import Artifact


class OutputsConfig(MixtureConfig):
    """Slots over experts, a router with its policy, and the rule of eligibility.

    Of an expert also ``"dir"``, ``"digest"``, ``"base"`` (a directory or None), ``"start"``, ``"end"`` and ``"knowledge"``;
    directories are relative to the mixture's. ``router``: the recipe's settings. ``eligible``: ``{"rule", "fallback": index,
    "default_time"}``.
    """

    model_type = "coterie_outputs"

    router: dict[str, Any] = field(default_factory=dict)
    eligible: Rule = field(default_factory=lambda: Rule(rule="all"))
    vocab_size: int = 0
    max_position_embeddings: int = 0
    """Longest sequence that every expert supports."""
    use_cache: bool = True

    @property
    def policy(self) -> Policy:
        return Policy(self.router["temperature"], self.router["top_k"], self.router["top_p"])

    @property
    def eligibility(self) -> Eligibility:
        return eligibility(self.eligible, self.names, self.experts)


AutoConfig.register(OutputsConfig.model_type, OutputsConfig, exist_ok=True)


def write(settings: Settings, seats: Sequence[Seat], router: Artifact | None, tokenizer: Artifact, folder: Path) -> None:
    """Write all of a mixture but its experts; see `coterie.mixtures.outputs.outputs_place.assemble`."""
    eligibility(settings["eligible"], [seat.name for seat in seats], settings["experts"])
    require_same_tokenizer([(seat.name, seat.artifact.path) for seat in seats])
    require_same_vocabulary({seat.name: seat.vocab_size for seat in seats})
    config = OutputsConfig(
        **settings,
        vocab_size=seats[0].vocab_size,
        max_position_embeddings=min(context_of((seat.base or seat.artifact).path) for seat in seats),
        architectures=["OutputsMixture"],
    )
    write_configuration(config, tokenizer.path, folder)
    if router:
        shutil.copyfile(router.file("router.safetensors"), folder / "router.safetensors")


def open_router(folder: Path, config: OutputsConfig) -> RouterModule:
    """The router of a mixture directory, strictly.

    Raises:
        RequestError: parameters are missing, unexpected or of another shape.
    """
    tensors = read_router(folder)
    rows = tensors["tokens.table_V2W"].shape[0] if "tokens.table_V2W" in tensors else config.vocab_size
    router = OutputRouter.model_validate(config.router).build(len(config.experts), rows)
    try:
        router.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise RequestError(
            "the router's parameters are not those of its kind",
            where=str(folder / "router.safetensors"),
            found=str(error).splitlines()[-1].strip(),
        ) from None
    return router.eval()


def open_experts(folder: Path, config: OutputsConfig, opening: Opening) -> list[PreTrainedModel]:
    """The distinct experts of a mixture directory."""
    experts = []
    for entry in config.experts:
        home = part(folder, entry["dir"], f"the expert {entry['name']!r}")
        base = part(folder, entry["base"], f"the base of {entry['name']!r}") if entry["base"] else None
        experts.append(open_model(home, base=base, dtype=opening.dtype, device=opening.device))
    return experts


def write_experts(
    experts: Sequence[PreTrainedModel], config: OutputsConfig, origin: Path | None, folder: Path
) -> OutputsConfig:
    """Write experts from memory; returns the configuration that names their directories.

    Args:
        origin: the directory that they were opened from, where the bases of adapters lie.
    """
    config = copy.deepcopy(config)
    for entry, expert in zip(config.experts, experts, strict=True):
        entry |= {"dir": f"experts/{entry['name']}", "digest": None}  # in memory it may have changed
        base = entry["base"]
        if hasattr(expert, "peft_config") and not base:
            raise RequestError(
                f"the base of {entry['name']!r} would be missing", do="merge the adapter into it first (merge_and_unload)"
            )
        expert.save_pretrained(folder / entry["dir"])
        if base:
            if origin is None or not (origin / base).is_dir():
                raise RequestError(f"the base of {entry['name']!r} is gone", where=f"{origin}/{base}")
            shutil.copytree(origin / base, folder / base, dirs_exist_ok=True)
    return config
