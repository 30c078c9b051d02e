"""``from_pretrained`` that gives the weights that were saved, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from coterie.errors import RequestError
from coterie.models.quiet import quiet


def load_strictly(folder: Path, *, dtype: torch.dtype | str | None = None, device_map: str | None = None) -> PreTrainedModel:
    """``from_pretrained`` where a missing, unexpected or misshapen tensor is an error (tied weights are not missing)."""
    try:
        with quiet():
            model, report = _from_pretrained(folder, dtype, device_map)
    except RequestError:
        raise
    except (ValueError, KeyError, OSError, RuntimeError, TypeError, ImportError) as error:
        raise RequestError("the model cannot be opened", where=str(folder), found=str(error).splitlines()[0]) from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            names = sorted(str(n[0] if isinstance(n, tuple) else n) for n in report[problem])
            raise RequestError(
                f"the weights are not those of the architecture: {problem.removesuffix('_keys')} tensors",
                where=str(folder),
                found=", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
                do="use a whole checkpoint of this architecture",
            )
    return model


def _from_pretrained(
    folder: Path, dtype: torch.dtype | str | None, device_map: str | None, attention: str = "sdpa"
) -> tuple[PreTrainedModel, dict[str, list[object]]]:
    try:
        opened: object = AutoModelForCausalLM.from_pretrained(
            folder,
            attn_implementation=attention,
            dtype=dtype,
            device_map=device_map,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, and the report must be empty
        )
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error) or attention == "eager":
            raise
        return _from_pretrained(folder, dtype, device_map, "eager")
    return cast("tuple[PreTrainedModel, dict[str, list[object]]]", opened)
