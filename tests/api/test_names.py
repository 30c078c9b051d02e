"""What `import coterie` brings: all names, and no torch."""

from __future__ import annotations

import subprocess
import sys
import typing

import coterie
from coterie.api.train_from_data import TrainSettings
from coterie.experts.train_settings import Train


def test_names_are_there_and_importing_them_is_light() -> None:
    code = (
        "import sys, coterie; assert 'mix' in dir(coterie); "
        "heavy = {'torch', 'transformers', 'numpy', 'polars', 'pyarrow'} & sys.modules.keys(); assert not heavy, heavy; "
        "coterie.Posterior(decay=0.9), coterie.Documents(path='x'), coterie.Lora(r=2); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in coterie.__all__:
        assert getattr(coterie, name) is not None
        assert name in dir(coterie)


def test_train_takes_every_setting_of_a_recipe() -> None:
    assert {*TrainSettings.__annotations__, "tokens", "epochs"} == set(Train.model_fields)
    ours, theirs = typing.get_type_hints(TrainSettings), typing.get_type_hints(Train)
    assert ours["schedule"] == theirs["schedule"]
    assert ours["precision"] == theirs["precision"]
