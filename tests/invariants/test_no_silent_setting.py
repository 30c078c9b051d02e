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
        assert caught.value.what == "unknown key", path
        assert (caught.value.where or "").endswith("toknes"), path
        known = set((caught.value.expected or "").split(", "))
        assert known >= here.keys() - {"toknes"}, path


def test_every_setting_is_documented() -> None:
    for section in sections():
        assert section.sentence, section.title
        for name, _, _, meaning in section.fields:
            assert meaning, f"{section.title}: {name}"


IGNORED: dict[str, tuple[dict[str, Any], str, str]] = {
    "lora settings of another kind": (
        {"experts.0.lora": {"r": 4}},
        "experts.0",
        "lora settings are ignored by kind full: set kind: lora or remove them",
    ),
    "two budgets": ({"experts.0.train": {"tokens": 100, "epochs": 2}}, "experts.0.train", "give either tokens or epochs"),
    "processes without parallel": (
        {"experts.0.train.processes": 2},
        "experts.0.train",
        "processes is ignored without parallel: set parallel: ddp",
    ),
    "a fallback without dates": ({"mixtures.0.fallback": "fruit"}, "mixtures.0", "set eligible: strict, or take them out"),
    "a default date without dates": (
        {"mixtures.0.default_time": "2016-01-01"},
        "mixtures.0",
        "set eligible: strict, or take them out",
    ),
    "top_k above the experts": ({"mixtures.0.router": {"kind": "uniform", "top_k": 3}}, "mixtures.0.router", "at most 2"),
    "text and prompt": ({"corpora.fruit.prompt": "query"}, "corpora.fruit", "give either text, or prompt and response"),
    "undated without time": (
        {"corpora.fruit.undated": "rest"},
        "corpora.fruit",
        "undated and time_pattern are ignored without time",
    ),
    "previous without windows": ({"experts.0.from": "previous"}, "experts.0", "from: previous needs windows"),
    "windows without dates": (
        {"experts.0.window": {"start": "2013-01-01", "end": "2014-01-01"}},
        "experts.0",
        "set corpora.fruit.time to the column that holds the date",
    ),
    "a rule without windows": ({"mixtures.0.eligible": "inclusive"}, "mixtures.0", "give it a window, or set eligible: all"),
    "settings of another router": (
        {"mixtures.0.router": {"kind": "uniform", "epochs": 3}},
        "mixtures.0.router.epochs",
        "unknown key",
    ),
    "kv_heads of gpt2": ({"base.init": "gpt2", "base.kv_heads": 1}, "base", "kv_heads must divide heads, and gpt2 has none"),
}
"""What is changed, the key that the error names, and its words: what would be ignored and what to do instead."""


@pytest.mark.parametrize(("changes", "where", "words"), IGNORED.values(), ids=IGNORED)
def test_what_would_be_ignored_is_refused(tmp_path: Path, changes: dict[str, Any], where: str, words: str) -> None:
    wrong = recipe(tmp_path)
    for key, value in changes.items():
        here: Any = wrong
        *path, last = key.split(".")
        for part in path:
            here = here[int(part)] if part.isdigit() else here.setdefault(part, {})
        here[last] = value
    with pytest.raises(RequestError) as caught:
        read(wrong)
    assert (caught.value.where or "").startswith(where)
    assert words in str(caught.value)
