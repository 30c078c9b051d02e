"""Open a model, or an adapter on its base, so that what was saved is what runs: nothing missing, nothing unexpected."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from transformers import PreTrainedModel

from coterie.errors import RequestError, WorkError
from coterie.models import lora_files
from coterie.models.adapter_names import plain_names
from coterie.models.bounded import require_finite
from coterie.models.checkpoint import checkpoint, require_same_base
from coterie.models.quiet import load_strictly, quiet
from coterie.spec.json_file import read_json
from coterie.store import Artifact
from coterie.store.admit import admit

Openable = Artifact | Path | str


def open_model(
    what: Openable,
    *,
    base: Openable | None = None,
    dtype: torch.dtype | str = torch.float32,
    device: torch.device | str | None = None,
    trainable: bool = False,
) -> PreTrainedModel:
    """The model in an artifact or a directory, in evaluation mode, without a key-value cache.

    Args:
        what: a Hugging Face model directory, or a PEFT adapter directory, which needs ``base``.
        base: the model an adapter rests on. It must be the one it was trained on, by content.
        device: the CPU by default.
        trainable: leave an adapter's weights trainable.

    Raises:
        RequestError: a configuration names code to be run, the weights are not those of the architecture, or the base is
            not the adapter's.
    """
    folder = _folder(what)
    for place in (folder, *([] if base is None else [_folder(base)])):
        admit(place)
    if not (folder / "adapter_config.json").is_file():
        model = load_strictly(folder, dtype=dtype)
    else:
        if base is None:
            raise RequestError("an adapter needs the model it rests on", where=str(folder), expected="base")
        require_same_base(folder, base if isinstance(base, Artifact) else checkpoint(base))
        model = _on_base(folder, load_strictly(_folder(base), dtype=dtype), trainable)
    model.config.use_cache = False
    return model.to(torch.device(device or "cpu")).eval()  # type: ignore[arg-type]


def _on_base(folder: Path, model: PreTrainedModel, trainable: bool) -> PreTrainedModel:
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict

    saved, path = lora_files.tensors(folder), folder / "adapter_config.json"
    given = read_json(path)
    ranks = [given.get("r", 0), *(given.get("rank_pattern") or {}).values()]
    if not all(isinstance(r, int) and r <= max((max(t.shape) for t in saved.values()), default=0) for r in ranks):
        raise RequestError(
            "the configuration claims more than the weights hold",
            where=f"{path} (r)",
            expected="ranks of the tensors",
            found=", ".join(map(str, ranks)),
            do="correct it, or fetch the adapter again",
        )
    plain = plain_names(given, (name for name, _ in model.named_modules()), path)
    try:
        with quiet():
            config = PeftConfig.from_pretrained(str(folder))
            for key, value in plain.items():
                setattr(config, key, value)
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, config=config)
    except Exception as error:  # whatever a configuration can make a library raise
        raise RequestError(
            "the adapter cannot be opened on this base",
            where=str(path),
            found=f"{type(error).__name__}: {str(error)[:200]}",
            do="name the base it was trained on, or save it again with PEFT",
        ) from error
    loaded = get_peft_model_state_dict(adapted)
    if differing := sorted(saved.keys() ^ loaded.keys()):
        raise RequestError(
            "the adapter does not fit the base", where=str(folder), found=f"{differing[0]} and {len(differing) - 1} more"
        )
    require_finite(saved.items(), folder)
    for name, tensor in saved.items():
        if not torch.equal(loaded[name].float(), tensor.float()):
            raise WorkError("the adapter was not loaded as it was saved", where=f"{folder} ({name})")
    return cast(PreTrainedModel, adapted)  # PEFT passes on what a model of transformers has


def _folder(what: Openable) -> Path:
    return what.path if isinstance(what, Artifact) else Path(what)
