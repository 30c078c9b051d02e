"""The real checkpoint, for tests marked `real`."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.real.model import folder


@pytest.fixture(scope="session")
def real_model() -> Path:
    """Directory of SmolLM2-135M-Instruct in bf16."""
    if not (folder() / "config.json").is_file():
        pytest.skip(f"no checkpoint at {folder()}: make real-model")
    return folder()
