"""Corpora and tokenizers small enough to make for every test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from coterie.corpora.documents import read_corpus
from coterie.corpora.tokenizer import TrainedTokenizer, make_tokenizer
from coterie.select.select_settings import Corpus
from coterie.store import Artifact, Store

Make = Callable[..., Artifact]


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(artifact: Artifact) -> list[dict[str, Any]]:
    """The documents of a corpus."""
    return pq.read_table(artifact.file("documents.parquet")).to_pylist()


@pytest.fixture
def make(store: Store, tmp_path: Path) -> Make:
    """Write rows as JSONL and read them as a corpus."""

    def read(rows: Iterable[dict[str, Any]], *, file: str = "rows.jsonl", store: Store = store, **recipe: Any) -> Artifact:
        path = write_jsonl(tmp_path / file, rows)
        return read_corpus(store, Corpus.model_validate({"path": str(path), **recipe}), label="c")

    return read


@pytest.fixture
def trained(store: Store, make: Make) -> Artifact:
    """A tokenizer of 300 tokens."""
    rows = [{"text": f"the cat {i} sat on the mat and the dog ran to the house of the cat"} for i in range(50)]
    spec = TrainedTokenizer(train="bpe", vocab_size=300)
    return make_tokenizer(store, spec, [make(rows, file="for-the-tokenizer.jsonl")], label="tokenizer")
