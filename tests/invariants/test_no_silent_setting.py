"""Invariant 13: an unknown key anywhere, or a setting that would be ignored, is an error that names key and remedy."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.run.small import recipe

from coterie.errors import RequestError
from coterie.recipe import read
from coterie.recipe.reference import sections


def places(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every mapping in a resolved recipe that is one of its models (not one whose keys are names)."""
    if isinstance(value, dict):
        if path[-1:] not in (("corpora",), ("where",)):
            yield path
        for key, inside in value.items():
            yield from places(inside, (*path, key))
    elif isinstance(value, list):
        for i, inside in enumerate(value):
            yield from places(inside, (*path, i))


def test_an_unknown_key_anywhere_is_an_error_that_names_it(tmp_path: Path) -> None:
    whole = json.loads(read(recipe(tmp_path)).model_dump_json(by_alias=True, exclude_none=True))
    found = list(places(whole))
    assert len(found) > 20
    for path in found:
        wrong = copy.deepcopy(whole)
        here = wrong
        for part in path:
            here = here[part]
        here["toknes"] = 1
        with pytest.raises(RequestError) as caught:
            read(wrong)
        message = str(caught.value)
        assert "unknown key" in message, path
        assert "toknes" in message, path
        assert caught.value.expected or caught.value.do, path


def test_every_setting_is_documented() -> None:
    for section in sections():
        assert section.sentence, section.title
        for name, _, _, meaning in section.fields:
            assert meaning, f"{section.title}: {name}"


IGNORED = {
    "lora settings of another kind": {"experts.0.lora": {"r": 4}},
    "two budgets": {"experts.0.train": {"tokens": 100, "epochs": 2}},
    "processes without parallel": {"experts.0.train.processes": 2},
    "a fallback without dates": {"mixtures.0.fallback": "fruit"},
    "a default date without dates": {"mixtures.0.default_time": "2016-01-01"},
    "top_k above the experts": {"mixtures.0.router": {"kind": "uniform", "top_k": 3}},
    "text and prompt": {"corpora.fruit.prompt": "query"},
    "undated without time": {"corpora.fruit.undated": "rest"},
    "previous without windows": {"experts.0.from": "previous"},
    "windows without dates": {"experts.0.window": {"start": "2013-01-01", "end": "2014-01-01"}},
    "a rule without windows": {"mixtures.0.eligible": "inclusive"},
    "settings of another router": {"mixtures.0.router": {"kind": "uniform", "epochs": 3}},
    "kv_heads of gpt2": {"base.init": "gpt2", "base.kv_heads": 1},
}


@pytest.mark.parametrize("changes", IGNORED.values(), ids=IGNORED)
def test_what_would_be_ignored_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    wrong = recipe(tmp_path)
    for key, value in changes.items():
        here: Any = wrong
        *path, last = key.split(".")
        for part in path:
            here = here[int(part)] if part.isdigit() else here.setdefault(part, {})
        here[last] = value
    with pytest.raises(RequestError) as caught:
        read(wrong)
    assert caught.value.where
