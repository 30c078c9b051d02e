"""Few functions of ours stand between a command and the Trainer, so that a person can read the way from one to the other."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import transformers
import yaml
from tests.run.small import recipe

import coterie
from coterie.cli import main

SOURCE = Path(coterie.__file__).parent
ROOMS = ("experts", "store", "models", "launch")


def functions_of_ours() -> list[str]:
    """``file:function`` of each frame under src/coterie, the outermost first."""
    found, frame = [], sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(SOURCE):
            found.append(f"{path.relative_to(SOURCE)}:{frame.f_code.co_name}")
        frame = frame.f_back
    return found[::-1]


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Of every training of a small recipe, run as a person does."""
    home = tmp_path_factory.mktemp("frames")
    raw = recipe(home / "data", single=None, mixtures=[], evaluation=[])
    raw["base"].pop("pretrain")
    (home / "recipe.yaml").write_text(yaml.safe_dump(raw))
    words = ["train", str(home / "recipe.yaml"), "--store", str(home / "store"), "--out", str(home / "out")]
    plain, seen = transformers.Trainer.train, []

    def noted(self: transformers.Trainer, **given: object) -> object:
        seen.append(functions_of_ours())
        return plain(self, **given)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(transformers.Trainer, "train", noted)
        patched.setattr(sys, "argv", ["coterie", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 0
    return seen


@pytest.mark.parametrize(("rooms", "most"), [((), 8), (ROOMS, 3)], ids=["all", "from the request for an expert on"])
def test_few_functions_lie_between_the_command_and_the_trainer(
    stacks: list[list[str]], rooms: tuple[str, ...], most: int
) -> None:
    assert len(stacks) == 2, "an expert was not trained"
    for stack in stacks:
        counted = [name for name in stack if not rooms or name.partition("/")[0] in rooms]
        assert len(counted) <= most, stack
