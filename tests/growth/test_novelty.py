"""Novelty: separated corpora are new, repeats are not, whatever the padding, the batch size or the packing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import V, blocks_artifact, llama

from coterie.corpora.blocks import Blocks
from coterie.errors import RequestError
from coterie.growth.document_features import of
from coterie.growth.growth_actions import features as features_verb
from coterie.growth.growth_actions import make_library as library_verb
from coterie.growth.novelty import Library, read_features
from coterie.store import Store


def documents(kind: int, count: int, seed: int) -> list[list[int]]:
    """Tokens of one of several vocabularies, of different lengths."""
    draw = np.random.default_rng([kind, seed])
    low = 2 + 20 * kind
    return [draw.integers(low, low + 20, draw.integers(4, 20)).tolist() for _ in range(count)]


def cloud(centre: float, count: int, seed: int, width: int = 12) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return centre + draw.normal(size=(count, width)) @ np.diag(np.linspace(0.5, 2, width))


def test_two_separated_corpora_are_two_skills_and_a_repeat_is_none(tmp_path: Path) -> None:
    store, base = Store(tmp_path / "s"), _base(Store(tmp_path / "s"))
    made: dict[str, Any] = {}

    def seen(kind: int, count: int, seed: int, length: int = 24) -> Any:
        blocks = blocks_artifact(store, f"{kind}-{seed}-{count}-{length}", documents(kind, count, seed), length)
        return features_verb(store, base, blocks, label="features")

    for kind, name in enumerate(["one", "two"]):
        made[name] = (seen(kind, 60, 1), seen(kind, 40, 2))
        whole = Library.read(library_verb(store, made, experts=dict.fromkeys(made, "e")).path)
        assert [s.name for s in whole.skills] == list(made)
        again = whole.decide(read_features(seen(kind, 50, 3)))
        assert not again.novel, str(again)
        assert again.nearest == name
        other = whole.decide(read_features(seen(kind + 1, 50, 3)))
        assert other.novel, str(other)
        assert "score" in str(other)


def _base(store: Store) -> Any:
    from tests.tiny import artifact

    def build(folder: Path) -> None:
        llama(1).save_pretrained(folder)

    return artifact(store, "weights", "base", build)


@pytest.mark.parametrize("length", [20, 24, 40])
def test_features_do_not_depend_on_packing_padding_or_batches(length: int, tmp_path: Path, monkeypatch: Any) -> None:
    model, docs = llama(1), documents(0, 12, 5)
    store = Store(tmp_path)
    for size in (length, 4 * length):
        monkeypatch.setattr("coterie.mixtures.score_files.TOKENS_AT_ONCE", size)
        mean_DH, tokens_D = of(model, Blocks.open(blocks_artifact(store, f"b{length}", docs, length)))
        assert tokens_D.tolist() == [len(d) for d in docs]
        for d, ids in enumerate(docs):
            with torch.no_grad():
                hidden = model.model(input_ids=torch.tensor([ids]), use_cache=False)[0][0]
            np.testing.assert_allclose(mean_DH[d], hidden.double().mean(0).numpy(), atol=2e-5)


def test_false_alarms_are_as_rare_as_asked() -> None:
    """Batches of known documents are called new about as often as ``alarm`` says, at any size."""
    alarms = 0
    for trial in range(60):
        library = Library([])
        library.add("a", "e", cloud(0.0, 300, 3 * trial), cloud(0.0, 300, 3 * trial + 1))
        alarms += library.decide(cloud(0.0, 32, 3 * trial + 2), alarm=0.1).novel
    assert alarms <= 18  # 6 expected of 60; 18 has a chance below 1e-4


@pytest.mark.parametrize("count", [3, 10, 32, 200])
def test_a_shift_is_found_with_few_documents_and_with_many(count: int) -> None:
    library = Library([])
    library.add("a", "e", cloud(0.0, 200, 1), cloud(0.0, 100, 2))
    library.add("b", "e", cloud(6.0, 200, 3), cloud(6.0, 100, 4))
    assert library.decide(cloud(-6.0, count, 5)).novel
    near = library.decide(cloud(6.0, count, 6))
    assert near.nearest == "b"


def test_a_library_reads_as_it_was_written(tmp_path: Path) -> None:
    library = Library([])
    library.add("a", "first", cloud(0.0, 50, 1), cloud(0.0, 20, 2))
    library.write(tmp_path)
    assert Library.read(tmp_path).decide(cloud(3.0, 9, 3)) == library.decide(cloud(3.0, 9, 3))
    (tmp_path / "library.json").write_text((tmp_path / "library.json").read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(RequestError, match="another version"):
        Library.read(tmp_path)


def test_nothing_and_nonsense_are_refused() -> None:
    library = Library([])
    with pytest.raises(RequestError, match="no skill"):
        library.decide(cloud(0.0, 9, 1))
    with pytest.raises(RequestError, match="too few documents"):
        library.add("a", "e", cloud(0.0, 50, 1), cloud(0.0, 3, 2))
    library.add("a", "e", cloud(0.0, 50, 1), cloud(0.0, 20, 2))
    with pytest.raises(RequestError, match="empty"):
        library.decide(cloud(0.0, 0, 1))
    with pytest.raises(RequestError, match="not of the library's base"):
        library.decide(cloud(0.0, 9, 1, width=5))
    with pytest.raises(RequestError, match="not of the library's base"):
        library.decide(cloud(np.nan, 9, 1))


assert V >= 62
