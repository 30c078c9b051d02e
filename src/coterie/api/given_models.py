"""Models at hand as experts: directories, hub ids, models in memory. What a store made itself is found there again; all else
is checked and copied into it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from coterie.api.workplace import Workplace
from coterie.errors import RequestError
from coterie.experts.expert_actions import FILES, adopt, adopt_model
from coterie.mixtures.load import load
from coterie.mixtures.mixture import Mixture, Model
from coterie.mixtures.mixture_files import part
from coterie.mixtures.outputs.outputs_files import OutputsConfig
from coterie.mixtures.seats import Seat
from coterie.models.checkpoint import checkpoint, contents, weight_files
from coterie.models.local_files import no_model
from coterie.models.quiet import quiet
from coterie.spec.settings import check_name
from coterie.store import Artifact, Store
from coterie.store.admit import admit
from coterie.store.durable import discard, owner
from coterie.store.link import origin

if TYPE_CHECKING:
    from peft import PeftModel

# names --------------------------------------------------------------------------------------------------------------------


def named(experts: Mapping[str, Model] | Sequence[Model]) -> tuple[dict[str, Model], list[str]]:
    """The distinct experts by name, and the name in each slot. In a list, what stands there twice has two slots.

    Raises:
        RequestError: there are none, or a name is no name.
    """
    if not experts:
        raise RequestError("a mixture needs at least one expert", where="experts", found="none")
    if isinstance(experts, Mapping):
        return {checked_name(name): model for name, model in experts.items()}, list(experts)
    if isinstance(experts, str | Path) or not isinstance(experts, Sequence):
        raise RequestError("give a list of models, or models by name", where="experts", found=type(experts).__name__)
    found: dict[str, Model] = {}
    name_of: dict[object, str] = {}
    slots = []
    for number, model in enumerate(experts, 1):
        key = str(model) if isinstance(model, str | Path) else id(model)
        if key not in name_of:
            guess = _name(model, number)
            name_of[key] = next(n for n in (guess, *(f"{guess}-{i}" for i in range(2, 10**6))) if n not in found)
            found[name_of[key]] = model
        slots.append(name_of[key])
    return found, slots


def checked_name(name: str) -> str:
    """The name of an expert.

    Raises:
        RequestError: it is none.
    """
    try:
        return check_name(name)
    except ValueError as error:
        raise RequestError("an expert's name is wrong", where="experts", found=str(error)) from None


def _name(model: Model, number: int) -> str:
    """A path's last part, an expert's own name, or its number."""
    text = Path(model).expanduser().absolute().name if isinstance(model, str | Path) else ""
    if isinstance(model, Mixture):
        text = model.config.experts[0]["name"]
    text = re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("._-")[:60]
    return text if text and not text.isdigit() else f"expert-{text or number}"


# seats --------------------------------------------------------------------------------------------------------------------


def seat(workplace: Workplace, name: str, model: Model, base: Artifact | None = None) -> Seat:
    """A model as an expert.

    Args:
        base: what an adapter rests on; else the model that lies beside it, or that it names.

    Raises:
        RequestError: it is no whole, finite, safe model or adapter, or what an adapter rests on is not known.
    """
    store, folder = workplace.store, located(workplace, model, name)
    label = f"expert {name}"
    if not (Path(folder) / "adapter_config.json").is_file():
        made = origin(store, Path(folder), ("experts",)) or adopt_model(store, folder, kind="full", label=label)
        if Path(folder).parent == workplace.folder:
            discard(Path(folder))  # it was written there for the store to copy
        return Seat(name, made)
    own = beside(store, Path(folder))
    rests = base or own
    if own is not None and base is not None and contents(own) != contents(base) and _same_tensors(own, base):
        folder = _without_facts(workplace, Path(folder))  # they name a base that is this one in other files
    if rests is None:
        raise RequestError(
            f"expert {name!r} is an adapter, and the model that it rests on is not known", where=str(folder), do="give base="
        )
    made = origin(store, Path(folder), ("experts",)) or adopt(store, folder, rests, label=label)
    return Seat(name, made, base=rests, targets=_targets(made))


def beside(store: Store, folder: Path) -> Artifact | None:
    """What an adapter in a directory rests on: the model beside it, or in the directory that it names."""
    named = json.loads((folder / "adapter_config.json").read_text()).get("base_model_name_or_path")
    places = [folder / "base", *([folder / named, Path(named)] if named else [])]
    found = next((place for place in places if (place / "config.json").is_file()), None)
    if found is None:
        return None
    return (origin(store, folder, ("experts", "weights"), "base") if found == places[0] else None) or checkpoint(found)


def _same_tensors(one: Artifact, two: Artifact) -> bool:
    """Whether two models have the same weights, bit by bit, whatever their configurations say."""
    tensors = [{name: t for file in weight_files(a.path) for name, t in load_file(file).items()} for a in (one, two)]
    return tensors[0].keys() == tensors[1].keys() and all(torch.equal(t, tensors[1][name]) for name, t in tensors[0].items())


def _without_facts(workplace: Workplace, adapter: Path) -> Path:
    folder = workplace.folder / f"adapter{owner()}"
    folder.mkdir()
    for name in FILES:
        shutil.copyfile(adapter / name, folder / name)
    return folder


def _targets(adapter: Artifact) -> object:
    """What says which linears it updates: of one that was trained here its settings."""
    trained = json.loads(adapter.file("manifest.json").read_text())["spec"].get("lora")
    return trained["targets"] if trained else adapter.content("adapter_config.json")


def weights(workplace: Workplace, model: Model, where: str) -> Artifact:
    """A whole model that experts branch from or rest on, hashed where it lies."""
    folder = located(workplace, model, where)
    if (Path(folder) / "adapter_config.json").is_file():
        raise RequestError(
            "a base is a whole model", where=where, found=f"the adapter {folder}", do="merge it into its base"
        )
    return origin(workplace.store, Path(folder), ("experts", "weights")) or checkpoint(folder)


def located(workplace: Workplace, model: Model, where: str) -> Path | str:
    """The directory of a model or an adapter; a model in memory is written into one. What is no directory is a hub id.

    Raises:
        RequestError: a mixture of several experts, or something else that is no model.
    """
    if isinstance(model, str | Path):
        folder = Path(model).expanduser()
        if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            if isinstance(model, Path) or folder.is_dir() or model.startswith((".", "~")) or model.count("/") > 1:
                raise no_model(folder)
            return model
        admit(folder)
        return _one_expert(folder, where)
    if isinstance(model, Mixture):
        if len(model.config.experts) != 1 or not isinstance(model.config, OutputsConfig):
            raise _no_expert(where)
        if model.source is not None and same_weights(model, model.source.folder):
            return _one_expert(model.source.folder, where)
        folder = _saved(cast(PreTrainedModel, model.experts[0]), workplace.folder / f"model{owner()}")
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(folder)
        return folder
    if not hasattr(model, "save_pretrained"):
        raise RequestError(
            "this is no model",
            where=where,
            expected="a transformers or PEFT model, a directory or a hub id",
            found=type(model).__name__,
        )
    return _saved(model, workplace.folder / f"model{owner()}")


def _one_expert(folder: Path, where: str) -> Path:
    """Where the expert of a directory lies: in itself, or inside a mixture of that expert alone."""
    config = folder / "config.json"
    settings = json.loads(config.read_text()) if config.is_file() else {}
    if not str(settings.get("model_type")).startswith("coterie_"):
        return folder
    if settings["model_type"] != OutputsConfig.model_type or len(settings["experts"]) != 1:
        raise _no_expert(where)
    return part(folder, settings["experts"][0]["dir"], "the expert")


def _no_expert(where: str) -> RequestError:
    return RequestError("a mixture cannot be an expert of another", where=where, do="give its experts, one by one")


def _saved(model: PreTrainedModel | PeftModel, folder: Path) -> Path:
    if isinstance(model, PreTrainedModel):
        with quiet():
            model.save_pretrained(folder)
        return folder
    from coterie.models.lora_files import neutral

    names = list(model.peft_config)
    if len(names) != 1:
        raise RequestError("an expert is one adapter", where="experts", found=f"{len(names)}: {', '.join(names)}")
    base = cast(PreTrainedModel, model.get_base_model())
    state = {name.replace(".base_layer.", "."): t for name, t in base.state_dict().items() if ".lora_" not in name}
    with quiet():
        model.save_pretrained(str(folder))
        base.save_pretrained(folder / "base", state_dict=state)
    adapter = folder if names[0] == "default" else folder / names[0]
    if adapter != folder:
        (folder / "base").rename(adapter / "base")
    neutral(adapter)
    return adapter


def same_weights(model: Mixture, folder: Path) -> bool:
    """Whether a directory holds, bit by bit, the weights of a mixture that is in memory."""
    if not folder.is_dir():
        return False
    ours, theirs = model.state_dict(), load(folder, dtype=model.dtype).state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name].cpu(), theirs[name]) for name in ours)
