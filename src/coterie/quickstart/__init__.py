"""`coterie quickstart`: a whole run on text that every machine has."""

from __future__ import annotations

from pathlib import Path

import yaml

from coterie.quickstart.texts import write

RECIPE = Path(__file__).with_name("quickstart.yaml")


def recipe(folder: Path) -> dict:
    """The quickstart's recipe, its texts written to ``folder``."""
    paths = write(folder)
    raw = yaml.safe_load(RECIPE.read_text())
    for name, path in paths.items():
        raw["corpora"][name]["path"] = str(path.absolute())
    return raw
