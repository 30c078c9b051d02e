"""``from_pretrained`` that gives the weights that were saved, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from coterie.errors import RequestError
from coterie.models.quiet import quiet


def load_strictly(folder: Path, **options: object) -> PreTrainedModel:
    """``from_pretrained`` where a missing, unexpected or misshapen tensor is an error (tied weights are not missing)."""
    try:
        with quiet():
            model, report = _from_pretrained(folder, **options)
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


def _from_pretrained(folder: Path, **options: Any) -> Any:
    options |= {
        "local_files_only": True,
        "trust_remote_code": False,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # they are in the report, and the report must be empty
    }
    try:
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", **options)
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", **options)
