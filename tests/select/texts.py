"""Documents for the tests of selections: a few topics, a few formats, planted near-duplicates."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

TOPICS = {
    "sea": "ship sail harbour wave anchor captain storm island rope tide mast crew deck wind shore compass".split(),
    "kitchen": "bread flour oven butter salt pan knife soup onion garlic dish plate cook taste boil recipe".split(),
    "stars": "planet orbit telescope galaxy comet light moon gravity eclipse nova dust sphere axis night sky".split(),
    "law": "court judge clause treaty statute witness appeal verdict contract duty claim party plea oath deed".split(),
}
COMMON = "the a of and to in is was that it with for on as by at from this which were are be has had".split()
FORMATS = ("story", "lesson", "note")


def sentence(draw: random.Random, words: list[str]) -> str:
    size = draw.randrange(5, 14)
    said = [draw.choice(words) if draw.random() < 0.5 else draw.choice(COMMON) for _ in range(size)]
    return " ".join(said).capitalize() + draw.choice([".", ".", "!", "?"])


def rows(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Distinct documents with id, text, format, topic, points (a number)."""
    draw = random.Random(seed)
    out = []
    for i in range(count):
        topic = draw.choices(list(TOPICS), (5, 3, 2, 1))[0]
        form = draw.choices(FORMATS, (6, 3, 1))[0]
        text = " ".join(sentence(draw, TOPICS[topic]) for _ in range(draw.randrange(3, 14)))
        out.append({"id": f"d{i}", "text": text, "format": form, "topic": topic, "points": round(draw.random(), 6)})
    return out


def edited(text: str, rate: float, seed: int) -> str:
    """The text with some of its words changed."""
    draw = random.Random(seed)
    return " ".join(w if draw.random() >= rate else f"{w}q" for w in text.split(" "))


def grams(text: str, size: int = 5) -> set[tuple[str, ...]]:
    """The slow way to a document's set of word runs."""
    import re

    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))} if words else set()


def true_jaccard(a: str, b: str) -> float:
    x, y = grams(a), grams(b)
    return len(x & y) / len(x | y) if x | y else 0.0


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def corpus(path: str | list[str], select: dict[str, Any], **more: Any) -> Any:
    """A corpus with a selection, nothing held out unless asked for."""
    from coterie.select.select_settings import Corpus

    base = {"path": path, "id": "id", "split": {"valid": 0, "test": 0}}
    return Corpus.model_validate({**base, **more, "select": {"seed": 0, **select}})


def shares(labels: list[str], sizes: np.ndarray) -> dict[str, float]:
    out: dict[str, float] = {}
    for label, size in zip(labels, sizes, strict=True):
        out[label] = out.get(label, 0) + float(size)
    return out
