"""Small artifacts for tests: a tokenizer of words, random blocks, a fresh base."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from coterie.experts.train_settings import Train
from coterie.models.initialise import initialise
from coterie.recipe.base import FreshBase
from coterie.store import Action, Artifact, Store

VOCABULARY, LENGTH = 67, 16


def tokenizer(store: Store) -> Artifact:
    def build(folder: Path) -> None:
        words = {"<s>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
        made = Tokenizer(models.WordLevel(words, unk_token="w2"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "facts.json").write_text(json.dumps({"vocab_size": VOCABULARY, "bos_id": 0, "eos_id": 1}))

    return store.make(Action("tokenizers", {"test": "words"}), build, label="words")


def base(store: Store, init: str = "llama", **sizes: object) -> Artifact:
    small = {"hidden_size": 16, "layers": 2, "heads": 2, "intermediate_size": 24, "context": 64} | sizes
    return initialise(store, FreshBase(init=init, **small), tokenizer(store), seed=3, sequence_length=LENGTH)


def blocks(
    store: Store, count: int = 40, seed: int = 0, *, fill: float = 0.9, masked: float = 0.2, longest: int = 9
) -> Artifact:
    """Rows of several documents each, some padded at the end, some with prompts; tokens follow a noisy successor rule."""

    def build(folder: Path) -> None:
        rng = np.random.default_rng(seed)
        ids, position, target = (np.zeros((count, LENGTH), np.int32) for _ in range(3))
        document = np.full((count, LENGTH), -1, np.int32)
        number = 0
        for row in range(count):
            at = 0
            end = LENGTH if rng.random() < fill else int(rng.integers(4, LENGTH))
            while at < end:
                size = min(int(rng.integers(3, longest + 1)), end - at)
                step = int(rng.integers(1, 4))
                ids[row, at : at + size] = 2 + (int(rng.integers(0, 60)) + step * np.arange(size)) % (VOCABULARY - 2)
                ids[row, at] = 0
                position[row, at : at + size] = np.arange(size)
                given = 1 if rng.random() > masked else min(3, size)
                target[row, at + given : at + size] = 1
                document[row, at : at + size] = number
                at, number = at + size, number + 1
        arrays = {"ids": ids, "position": position, "target": target.astype(np.uint8), "document": document}
        save_file(arrays, folder / "blocks.safetensors")
        real = int((document >= 0).sum())
        facts = {"blocks": count, "length": LENGTH, "tokens": real, "targets": int(target.sum()), "documents": number}
        (folder / "facts.json").write_text(json.dumps(facts))

    spec = {"test": [count, seed, fill, masked, longest]}
    return store.make(Action("blocks", spec), build, label="blocks")


def settings(**changes: object) -> Train:
    """Twelve steps or so of a few rows."""
    plain = {"tokens": 700, "batch_size": 4, "learning_rate": 3e-3, "save_every": 10**9, "log_every": 3, "precision": "fp32"}
    return Train(**(plain | changes))
