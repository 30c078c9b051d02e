"""What is read of a model directory before it is opened: its JSON files, and whether they name code to be run."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path

from coterie.errors import RequestError
from coterie.spec.json_types import Figures

CONFIGURATIONS = (
    "config.json",
    "tokenizer_config.json",
    "adapter_config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
"""Files of which transformers and PEFT may take the name of code."""


def read_json(path: Path) -> Figures:
    """A JSON object in a file; RequestError if it is not there, or is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(
            "not a Hugging Face model directory", where=str(path.parent), expected=path.name, found="no such file"
        ) from None
    except (ValueError, OSError) as error:
        raise RequestError("cannot be read as JSON", where=str(path), found=str(error)) from None
    if not isinstance(value, dict):
        raise RequestError("cannot be read", where=str(path), expected="a JSON object", found=type(value).__name__)
    return value


def refuse_remote_code(folder: Path) -> None:
    """No code that comes with weights is run, nor kernels of a hub: RequestError if a configuration in the folder of a
    model, an adapter, a tokenizer or a mixture (its base and experts too) names such."""
    for place in (folder, folder / "base", *folder.glob("experts/*")):
        for file in (place / name for name in CONFIGURATIONS):
            for key, value in _walk(read_json(file)) if file.is_file() else ():
                kernel = key.endswith("_implementation") and isinstance(value, str) and "/" in value
                if key == "auto_map" or kernel:
                    raise RequestError(
                        "the model asks for code from elsewhere to be run, which is refused",
                        where=f"{file} ({key})",
                        found=str(value),
                        do="convert it to an architecture of transformers",
                    )


def _walk(value: object) -> Iterator[tuple[str, object]]:
    """Every key with its value, however deep."""
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield str(key), child
        yield from _walk(child)


_PLACES = ("mixtures/*", "experts/*", "*", "*/mixtures/*", "*/experts/*")
"""Where a run's models are, seen from its folder or from the one above."""


def no_model(folder: Path) -> RequestError:
    """The error for a folder that holds no model; it names those in it, or beside it if it is not there."""
    there = folder.is_dir()
    near = folder if there else folder.parent
    marks = ("config.json", "adapter_config.json")
    found = list(dict.fromkeys(str(p.parent) for place in _PLACES for m in marks for p in sorted(near.glob(f"{place}/{m}"))))
    if not there:
        found = difflib.get_close_matches(str(folder), found, n=len(found) or 1, cutoff=0)
    return RequestError(
        "no model is here" if there else "no such directory",
        where=str(folder),
        expected="config.json or adapter_config.json" if there else "the folder of a mixture or an expert",
        found=", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "") or None,
        do=f"did you mean {found[0]}?" if found else None,
    )
