"""Libraries on our terms: silent, with random numbers of their own, loading the weights that were saved and nothing else."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from coterie.errors import RequestError
from coterie.models.bounded import bounded, require_finite


@contextmanager
def quiet() -> Iterator[None]:
    """No log lines, load reports or progress bars of transformers; errors are still raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers follow from ``seed`` inside; outside, every global generator goes on as if nothing had happened."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def load_strictly(folder: Path, *, dtype: torch.dtype | str | None = None, device_map: str | None = None) -> PreTrainedModel:
    """``from_pretrained`` where a missing, unexpected or misshapen tensor is an error (tied weights are not missing), as are
    sizes that no weights are behind, and numbers that are none."""
    try:
        with quiet(), bounded(folder, [*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]):
            model, report = _from_pretrained(folder, dtype, device_map)
    except RequestError:
        raise
    except Exception as error:  # whatever a configuration can make a library raise
        found = f"{type(error).__name__}: {error}".splitlines()[0]
        raise RequestError(
            "the model cannot be opened", where=str(folder), found=found, do="use a whole checkpoint of a known architecture"
        ) from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            names = sorted(str(n[0] if isinstance(n, tuple) else n) for n in report[problem])
            raise RequestError(
                f"the weights are not those of the architecture: {problem.removesuffix('_keys')} tensors",
                where=str(folder),
                found=", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else ""),
                do="use a whole checkpoint of this architecture",
            )
    require_finite(model.named_parameters(), folder)
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
