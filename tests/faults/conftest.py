from __future__ import annotations

import pytest

from coterie import progress


@pytest.fixture
def heard(quiet, monkeypatch, capsys):
    """What people are told; `readouterr().err`."""
    monkeypatch.setattr(progress, "QUIET", False)
    return capsys
