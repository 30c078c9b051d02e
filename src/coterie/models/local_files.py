"""What to say where a model should be and none is: which ones are near."""

from __future__ import annotations

import difflib
from pathlib import Path

from coterie.errors import RequestError

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
        found=", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "") or _names(near),
        do=f"did you mean {found[0]}?" if found else "name the folder of a mixture or an expert, such as OUT/mixtures/NAME",
    )


def _names(folder: Path) -> str:
    """What lies in a folder, for messages."""
    names = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"
