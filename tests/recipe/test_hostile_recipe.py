"""Recipes made to hang: each ends with exit 2 and a place, in seconds."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml
from tests.forked import coterie as command
from tests.run.small import recipe

from coterie.errors import RequestError
from coterie.recipe import read

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)


def refused(path: Path, *settings: str) -> RequestError:
    began = time.monotonic()
    with pytest.raises(RequestError) as caught:
        read(path, settings)
    assert time.monotonic() - began < 5
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        BOMB,
        f"name: x\ncorpora:\n  a: {{path: b}}\nexperts: []\nmore: {'[' * 3000}{']' * 3000}",
        "[" * 3000,
        '{"name": ' * 3000 + "1" + "}" * 3000,
        "- " * 3000 + "a",
        "a: &a [*a]",
        "a: &a {b: *a}",
        "? " * 3000 + "a",
    ],
    ids=["aliases", "brackets", "open brackets", "json", "dashes", "itself", "itself as a value", "keys"],
)
@pytest.mark.parametrize("name", ["recipe.yaml", "recipe.json"])
def test_a_file_that_grows_or_nests_without_end(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert name in str(refused(tmp_path / name).where)


@pytest.mark.parametrize("value", ["[" * 3000, "{a: " * 3000, "&a [*a]"])
def test_a_setting_that_nests_without_end(tmp_path: Path, value: str) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(tmp_path / "data")))
    assert "--set" in str(refused(tmp_path / "recipe.yaml", f"experts.0.train={value}").where)


def test_anchors_are_still_of_use(tmp_path: Path) -> None:
    raw = recipe(tmp_path / "data")
    del raw["train"]
    text = yaml.safe_dump(raw)
    for n, name in enumerate(("fruit", "tools")):
        text = text.replace(f"- corpus: {name}\n", f"- corpus: {name}\n  train: {'&t {tokens: 1500}' if not n else '*t'}\n")
    (tmp_path / "recipe.yaml").write_text(text)
    assert [e.train.tokens for e in read(tmp_path / "recipe.yaml").experts] == [1500, 1500]


@pytest.mark.parametrize("pattern", ["(a+)+$", "((a|aa)+)$", "(.*a){20}", "(a|a)*b"])
def test_a_pattern_that_could_search_for_ever(tmp_path: Path, pattern: str) -> None:
    raw = recipe(tmp_path / "data")
    rows = [json.dumps({"id": str(n), "text": f"word {n}", "date": "a" * 5000 + "!"}) for n in range(50)]
    (tmp_path / "data" / "fruit.jsonl").write_text("\n".join(rows) + "\n")
    raw["corpora"]["fruit"] |= {"time": "date", "time_pattern": pattern}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(raw))
    command("--version", cwd=tmp_path)  # the server that forks is up
    began = time.monotonic()
    done = command("run", "recipe.yaml", "--store", "store", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "corpora.fruit" in done.stderr or "fruit.jsonl" in done.stderr
    assert time.monotonic() - began < 5
