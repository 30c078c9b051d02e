"""The recipe behind docs/results/time.md: one seed of the study of time-aware mixtures; see time_study.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

STARTS = (2013, 2015, 2017, 2019, 2021, 2023)
FAMILIES = {
    "fresh": ["f2013", "f2015", "f2017", "f2019", "f2021", "f2023"],
    "base": ["f2013", "b2015", "b2017", "b2019", "b2021", "b2023"],
    "previous": ["f2013", "p2015", "p2017", "p2019", "p2021", "p2023"],
}
"""Where windows branch: each from fresh weights, all from the first window's expert, each from the one before."""
REPLAY = ["f2013", "u2015", "u2017", "u2019", "u2021", "u2023"]
"""The honest rival: one model that goes on, at each window's end, on all text so far; its last one has read everything."""


def window(start: int, end: int) -> dict[str, str]:
    return {"start": f"{start}-01-01", "end": f"{end}-01-01"}


def recipe(data: Path, seed: int, tokens: int) -> dict[str, Any]:
    """Experts of all families, without mixtures.

    Args:
        tokens: for each window.
    """
    path = str(data / "dated" / "dated.jsonl")
    common = {"path": path, "text": "text", "id": "id", "split": {"valid": 0.06, "test": 0.06}}
    later = {"start": "2015-01-01", "end": "2025-01-01", "every": "2y"}
    experts: list[dict[str, Any]] = [
        {"name": "f{start}", "corpus": "dated", "windows": {**later, "start": "2013-01-01"}, "from": "fresh"},
        {"name": "b{start}", "corpus": "dated", "windows": later, "from": "f2013"},
    ]
    for kind, before, first in (("p", 0, None), ("u", 0, 2013)):
        before = "f2013"
        for start in STARTS[1:]:
            name = f"{kind}{start}"
            experts.append({"name": name, "corpus": "dated", "window": window(first or start, start + 2), "from": before})
            before = name
    experts.append(
        {"name": "everything", "corpus": "dated", "window": window(2013, 2025), "from": "fresh",
         "train": {"tokens": tokens * len(STARTS)}}
    )  # fmt: skip
    return {
        "name": f"time-{seed}",
        "seed": seed,
        "base": {"init": "llama", "hidden_size": 96, "layers": 3, "heads": 4,
                 "tokenizer": {"train": "bpe", "vocab_size": 2048, "corpora": ["first"]}},
        "corpora": {
            "dated": {**common, "time": "date"},
            # The one thing that all experts share has seen the first window alone.
            "first": {**common, "where": {"slice": "2013-2014"}},
        },
        "train": {"tokens": tokens, "learning_rate": 3e-3, "schedule": "wsd", "decay": 0.2, "save_every": 10**9},
        "experts": experts,
    }  # fmt: skip
