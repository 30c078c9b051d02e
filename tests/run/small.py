"""Corpora and recipes small enough to run whole in a few seconds."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

WORDS = {
    "fruit": "apple pear plum fig quince ripe sweet tree orchard basket juice seed peel stone".split(),
    "tools": "hammer saw file vice bolt nut drill bench iron steel turn press cut measure".split(),
}


def write_corpus(path: Path, words: list[str], rows: int, seed: int, dated: bool = False) -> Path:
    """Sentences over a few words; enough for a model of a few thousand parameters to learn something."""
    draw = random.Random(seed)
    lines = []
    for i in range(rows):
        text = " ".join(draw.choice(words) for _ in range(draw.randrange(6, 30))) + "."
        row: dict[str, Any] = {"id": f"{path.stem}-{i}", "text": text, "query": text[:12], "code": str(i)}
        if dated:
            row["date"] = f"{2013 + i * 12 // rows}-{1 + i % 12:02d}-01"
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")
    return path


def write_corpora(folder: Path) -> dict[str, Path]:
    folder.mkdir(parents=True, exist_ok=True)
    return {name: write_corpus(folder / f"{name}.jsonl", words, 240, i) for i, (name, words) in enumerate(WORDS.items())}


BASE = {"init": "llama", "hidden_size": 16, "layers": 1, "heads": 2, "tokenizer": {"train": "bpe", "vocab_size": 300}}


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """Two experts on a pre-trained base, three mixtures, one evaluation; everything in about two seconds."""
    paths = write_corpora(folder)
    return {
        "name": "small",
        "sequence_length": 32,
        "base": {**copy.deepcopy(BASE), "pretrain": {"corpora": list(paths), "tokens": 1500}},
        "corpora": {
            name: {"path": str(path), "text": "text", "id": "id", "split": {"valid": 0.15, "test": 0.15}}
            for name, path in paths.items()
        },
        "train": {"tokens": 1500, "learning_rate": 0.01, "precision": "fp32"},
        "experts": [{"name": name, "corpus": name} for name in paths],
        "single": True,
        "mixtures": [
            {"name": "average", "at": "outputs", "slots": ["fruit", "tools", "tools"]},
            {"name": "posterior", "at": "outputs", "slots": list(paths), "router": "posterior"},
            {"name": "learned", "at": "outputs", "slots": list(paths), "router": {"kind": "linear", "epochs": 2}},
        ],
        "evaluation": [{"name": "losses", "corpora": list(paths), "bootstrap": 50}],
        **changes,
    }
