"""Settings and fixtures that every test shares."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from coterie import progress
from coterie.store import Store

slow_start = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("coterie", deadline=None, max_examples=20, suppress_health_check=slow_start)
settings.load_profile("coterie")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No progress lines among the tests' own."""
    monkeypatch.setattr(progress, "QUIET", True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of a byte-level BPE tokenizer with 96 tokens, `<eos>` the first of them."""
    from tests.tiny import write_tokenizer

    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))
