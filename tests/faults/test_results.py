"""Opening what a run left: what is damaged is named and never used, wherever the folder was copied to."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults import results as r
from tests.forked import coterie as command

import coterie
from coterie.errors import RequestError
from coterie.store import objects, whole


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return r.finished(tmp_path_factory.mktemp("original"))


@pytest.fixture
def out(original: Path, tmp_path: Path) -> Path:
    """Another copy each time: the original's files are the store's too."""
    return shutil.copytree(original, tmp_path / "elsewhere" / "out")


def test_whole_results_open(out: Path) -> None:
    for file in r.files(out):
        if file.name in ("manifest.json", "summary.json"):
            for way in r.openers(out, file):
                way()


def damage(out: Path, count: int, seed: int) -> tuple[int, list[str], list[str]]:
    """Flip so many bits in every file, one at a time: how many were flipped, which no way in saw, which it saw badly."""
    draw, flipped, unseen, raw = random.Random(seed), 0, [], []
    for file in r.files(out):
        for _ in range(count):
            before = r.flip(file, draw)
            flipped += 1
            seen = False
            for way in r.openers(out, file):
                try:
                    way()
                except RequestError as error:
                    seen = True
                    if not (error.where and error.expected and error.found and error.do):
                        raw.append(f"{file}: {error}")
                except Exception as error:
                    raw.append(f"{file}: {type(error).__name__}: {error}")
            if not seen:
                unseen.append(str(file))
            file.write_bytes(before)
    return flipped, unseen, raw


@pytest.mark.slow
def test_many_flipped_bits_are_seen(out: Path) -> None:
    flipped, unseen, raw = damage(out, 40, seed=15)
    assert flipped > 3000
    assert (unseen, raw) == ([], [])


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _link(path: Path) -> None:
    target = path.replace(path.parent.parent / f"moved-{path.name}")
    path.symlink_to(target)


@pytest.mark.parametrize("harm", [_cut, Path.unlink, _pipe, _link])
@pytest.mark.parametrize("name", ["config.json", "experts/fruit/adapter_model.safetensors", "tokenizer.json"])
def test_a_file_of_a_mixture_that_is_not_as_it_was(out: Path, harm: Callable[[Path], None], name: str) -> None:
    path = out / "mixtures" / "on" / name
    path.chmod(0o644)
    harm(path)
    with pytest.raises(RequestError) as caught:
        coterie.load(out / "mixtures" / "on")
    assert Path(name).name in str(caught.value)


def test_a_file_that_nobody_put_there(out: Path) -> None:
    (out / "mixtures" / "on" / "chat_template.jinja").write_text("{{ 'no' }}")
    with pytest.raises(RequestError, match="damaged") as caught:
        coterie.load(out / "mixtures" / "on")
    assert "chat_template.jinja" in str(caught.value.where)


def test_a_part_of_a_mixture_is_checked_by_the_manifest_above_it(out: Path) -> None:
    part = out / "mixtures" / "out" / "experts" / "fruit"
    assert coterie.load(part, base=out / "base")
    r.flip(part / "adapter_model.safetensors", random.Random(0))
    with pytest.raises(RequestError, match="damaged"):
        coterie.load(part, base=out / "base")


def test_an_object_of_a_store_opens_checked(original: Path) -> None:
    folder = next((original.parent / "store" / "weights").glob("*"))
    copy = shutil.copytree(folder, original.parent.parent / "copy" / folder.name)
    assert coterie.load(copy)
    (copy / "manifest.json").chmod(0o644)
    (copy / "manifest.json").write_bytes((copy / "manifest.json").read_bytes() + b"\n")
    with pytest.raises(RequestError, match="damaged"):
        coterie.load(copy)


def test_bytes_are_hashed_once(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[Path] = []
    plain = objects.sha256
    monkeypatch.setattr(objects, "sha256", lambda path: hashed.append(path) or plain(path))
    for path in out.rglob("*"):
        os.utime(path)  # a copy keeps no identity that this process has seen
    time.sleep(0.1)  # what was changed just now is hashed again
    coterie.load(out / "mixtures" / "out")
    assert len(hashed) == len(set(hashed)) > 5
    coterie.load(out / "mixtures" / "out")
    assert len(hashed) == len(set(hashed))


def test_a_run_that_goes_on_breaks_the_seal_and_sets_it_again(original: Path, tmp_path: Path) -> None:
    """What a killed run leaves opens, and the next whole one answers for all of it."""
    home = shutil.copytree(original.parent, tmp_path / "home")
    recipe = json.loads((home / "out" / "recipe.json").read_text())
    seal = (home / "out" / "results.seal").read_bytes()
    recipe["mixtures"] = recipe["mixtures"][:2]
    (home / "out" / "other.json").write_text(json.dumps(recipe))  # paths are seen from there
    coterie.run(home / "out" / "other.json", store=home / "store", out=home / "out")
    assert (home / "out" / "results.seal").read_bytes() != seal
    assert not (home / "out" / "results.unsealed").exists()
    whole.break_seal(home / "out")
    assert coterie.load(home / "out" / "mixtures" / "out")


@pytest.mark.parametrize("part", ["mixtures/on", "experts/fruit", "base"])
def test_a_seal_that_somebody_took_away_is_missed(out: Path, part: str) -> None:
    (out / "results.seal").unlink()
    with pytest.raises(RequestError, match="damaged") as caught:
        coterie.load(out / part)
    assert "results.seal" in str(caught.value.where)


@pytest.mark.parametrize(
    ("words", "file"),
    [
        (["generate", "out/mixtures/on", "ripe"], "mixtures/on/router.safetensors"),
        (["export", "out/mixtures/in", "--to", "new"], "mixtures/in/gates.safetensors"),
        (["report", "out"], "summary.json"),
        (["grow", "out", "--prune", "--store", "store"], "recipe.json"),
    ],
)
def test_every_command_names_the_damage(out: Path, words: list[str], file: str) -> None:
    r.flip(out / file, random.Random(3))
    done = command(*words, cwd=out.parent)
    assert done.returncode == 2, done.stderr
    assert Path(file).name in done.stderr
    for word in ("where:", "expected:", "found:", "do:"):
        assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert not (out.parent / "new").exists()


def test_evaluate_in_python_opens_nothing_damaged(out: Path) -> None:
    r.flip(out / "experts" / "fruit-ffn" / "model.safetensors", random.Random(4))
    with pytest.raises(RequestError, match="damaged"):
        coterie.evaluate({"fruit": out / "experts" / "fruit-ffn"}, ["ripe plum and pear"] * 4, bootstrap=10)
