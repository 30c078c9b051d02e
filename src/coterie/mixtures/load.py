"""Any mixture or expert directory as one and the same kind of model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from coterie.errors import RequestError
from coterie.mixtures.adapters.adapters_mixture import AdaptersMixture
from coterie.mixtures.layers.layers_mixture import LayersMixture
from coterie.mixtures.mixture import Mixture
from coterie.mixtures.mixture_files import open_tokenizer, special_tokens
from coterie.mixtures.outputs.outputs_files import OutputsConfig
from coterie.mixtures.outputs.outputs_mixture import OutputsMixture
from coterie.models.local_files import no_model
from coterie.models.open import open_model
from coterie.models.weight_precision import opening_precision, torch_dtype
from coterie.routing.output_routers import OutputRouter, Uniform
from coterie.spec.json_file import read_json
from coterie.store.admit import admit

KINDS: dict[str, type[Mixture]] = {m.config_class.model_type: m for m in (OutputsMixture, LayersMixture, AdaptersMixture)}


def load(
    path: str | Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> Mixture:
    """Open a directory; see `coterie.load`, which also says what the mixture can be made anew from."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise no_model(folder)
    admit(folder)
    adapter, config = folder / "adapter_config.json", folder / "config.json"
    if adapter.is_file():
        named = read_json(adapter).get("base_model_name_or_path")
        places = [folder / "base", *([folder / named, Path(named)] if named else [])]
        base = base or next((p for p in places if (p / "config.json").is_file()), None)
    elif not config.is_file():
        raise no_model(folder)
    if dtype is None:
        dtype = torch_dtype(opening_precision(folder, None if base is None else Path(base)))
    if not adapter.is_file() and (kind := KINDS.get(str(read_json(config).get("model_type")))):
        try:
            return kind.from_pretrained(folder, dtype=dtype, device_map=device)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise RequestError(
                "the configuration is not that of a mixture",
                where=str(config),
                found=f"{type(error).__name__}: {str(error)[:200]}",
                do="export or save the mixture again; --debug shows where it was met",
            ) from error
    expert = open_model(folder, base=base, dtype=dtype, device=device)
    mixture = combine({folder.name: expert}, tokenizer=open_tokenizer(folder))
    nn.Module.to(mixture, expert.device)
    return mixture


def combine(
    experts: Mapping[str, PreTrainedModel],
    slots: Sequence[str] | None = None,
    router: OutputRouter = Uniform(),
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> OutputsMixture:
    """Models in memory as a mixture without dates.

    Args:
        experts: Hugging Face causal models with one vocabulary, by name.
        slots: names, repeats allowed; one slot each by default.
        router: a recipe's router.
    """
    names, special = list(experts), special_tokens(tokenizer)
    configs = [e.config for e in experts.values()]
    config = OutputsConfig(
        slots=[{"name": s, "expert": names.index(s)} for s in slots or names],
        experts=[{"name": n, "dir": f"experts/{n}", "base": None, "digest": None} for n in names],
        router=router.model_dump(mode="json"),
        eligible={"rule": "all"},
        vocab_size=configs[0].vocab_size,
        max_position_embeddings=min(getattr(c, "max_position_embeddings", 2**31 - 1) for c in configs),
        **special,
    )
    mixture = OutputsMixture(config, list(experts.values()), tokenizer=tokenizer)
    mixture.generation_config = GenerationConfig(**special)
    return mixture
