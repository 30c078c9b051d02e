"""One run of a recipe with experts of every kind and mixtures at every place, to compare with what Python makes of it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.run.small import WORDS, write_corpora
from tests.tiny import llama, write_tokenizer

import coterie
from coterie import Documents, progress

TRAIN: dict[str, Any] = {"tokens": 1500, "learning_rate": 0.01, "precision": "fp32"}
KINDS = {"full": "", "ffn": "-ffn", "lora": "-lora"}


@dataclass(frozen=True)
class House:
    """What was run, and where."""

    base: Path
    store: Path
    out: Path
    run: Any
    corpora: dict[str, Documents]

    def experts(self, kind: str = "full") -> dict[str, Path]:
        """Directories of the two experts of a kind."""
        return {name + KINDS[kind]: self.out / "experts" / (name + KINDS[kind]) for name in WORDS}

    def texts(self, kind: str = "full") -> dict[str, Documents]:
        """The corpora that they learned from."""
        return {name + KINDS[kind]: corpus for name, corpus in self.corpora.items()}


def texts_of(domain: str, rows: int = 30, seed: int = 7) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choice(WORDS[domain]) for _ in range(draw.randrange(6, 20))) + "." for _ in range(rows)]


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    progress.QUIET = True
    folder = tmp_path_factory.mktemp("house")
    base = folder / "base"
    llama(1, context=64).save_pretrained(base)
    write_tokenizer(base)
    said = {
        name: {"path": str(path), "text": "text", "id": "id", "split": {"valid": 0.15, "test": 0.15}}
        for name, path in write_corpora(folder / "data").items()
    }
    raw = {
        "name": "house",
        "sequence_length": 32,
        "base": {"path": str(base)},
        "corpora": said,
        "train": TRAIN,
        "experts": [
            {"name": name + ending, "corpus": name, "kind": kind, **({"lora": {"r": 2}} if kind == "lora" else {})}
            for kind, ending in KINDS.items()
            for name in WORDS
        ],
        "mixtures": [
            {"name": name, "at": at, "slots": [n + KINDS[kind] for n in WORDS], **settings}
            for name, (at, kind, settings) in MIXTURES.items()
        ],
        "evaluation": [{"name": "losses", "corpora": list(said), "bootstrap": 20}],
    }
    run = coterie.run(raw, store=folder / "store", out=folder / "out")
    corpora = {name: Documents.model_validate(settings) for name, settings in said.items()}
    return House(base, folder / "store", folder / "out", run, corpora)


MIXTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "average": ("outputs", "full", {}),
    "posterior": ("outputs", "full", {"router": {"kind": "posterior", "decay": 0.9, "epochs": 2}}),
    "low-rank": ("outputs", "lora", {"router": {"kind": "linear", "epochs": 2}}),
    "merged": ("layers", "ffn", {}),
    "told-apart": ("layers", "ffn", {"router": "ridge"}),
    "tuned": ("layers", "ffn", {"router": "learned", "tune": {"tokens": 600}}),
    "arrow": ("adapters", "lora", {"router": {"kind": "arrow", "top_k": 1}}),
    "gated": ("adapters", "lora", {"router": "ridge"}),
    "taught": ("adapters", "lora", {"router": {"kind": "learned", "tokens": 600}}),
}
"""Place, kind of experts, settings."""
