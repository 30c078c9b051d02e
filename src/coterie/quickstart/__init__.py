"""`coterie quickstart`: a whole run on text that every machine has."""

from __future__ import annotations

from pathlib import Path

import yaml

from coterie.quickstart.texts import write

RECIPE, TIME = (Path(__file__).with_name(name) for name in ("quickstart.yaml", "time.yaml"))


def recipe(folder: Path) -> dict:
    """The quickstart's recipe, its texts written to ``folder``; beside them a recipe for windows of time, to try next."""
    paths = write(folder)
    (folder / TIME.name).write_text(TIME.read_text())
    raw = yaml.safe_load(RECIPE.read_text())
    for name, corpus in raw["corpora"].items():
        corpus["path"] = str(paths[name].absolute())
    return raw
