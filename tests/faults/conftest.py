from __future__ import annotations

import os

import pytest

from coterie import progress


@pytest.fixture
def heard(quiet, monkeypatch, capsys):
    """What people are told; `readouterr().err`."""
    monkeypatch.setattr(progress, "QUIET", False)
    return capsys


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """No power is lost in a test, or only by a model of it: waiting for the disk would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
