"""Every recipe that ships is read and dry-run; those on the real data run whole, small, where it is there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import coterie
from coterie.errors import RequestError
from coterie.recipe import read

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").iterdir())
DATA = Path(os.environ.get("COTERIE_DATA", ROOT.parent / "shared" / "data"))

SMALL = {
    "two-domains.yaml": ["base.pretrain.tokens=20_000", "base.hidden_size=32", "base.layers=1"],
    "thirty-two-slots.json": ["base.pretrain.tokens=20_000", "base.hidden_size=32", "base.layers=1"],
    "from-checkpoint.yaml": [],
    "merged.yaml": ["base.pretrain.tokens=20_000", "base.hidden_size=32", "mixtures.tuned.tune.tokens=5_000"],
    "time.yaml": ["base.hidden_size=32", "base.layers=1", "mixtures.coadapted.adapt.tokens=60_000"],
    "time-fast.yaml": ["base.hidden_size=32", "base.layers=1", "mixtures.coadapted.adapt.tokens=60_000"],
    "select-prose.yaml": ["base.pretrain.tokens=20_000", "base.hidden_size=32", "base.layers=1"],
    "lora-code.yaml": [
        "base.pretrain.tokens=20_000",
        "base.hidden_size=32",
        "base.layers=1",
        "mixtures.joint.joint.tokens=40_000",
        "mixtures.routed.router.tokens=20_000",
        "experts.alpaca.train.tokens=20_000",
        "experts.mbpp.train.tokens=20_000",
    ],
    "lora-code-large.yaml": [
        "base.pretrain.tokens=20_000",
        "base.hidden_size=32",
        "base.layers=1",
        "mixtures.joint.joint.tokens=60_000",
    ],
    "lora-code-small.yaml": [
        "base.pretrain.tokens=20_000",
        "base.hidden_size=32",
        "base.layers=1",
        "mixtures.joint.joint.tokens=40_000",
    ],
}
"""What makes each small enough for a test."""


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_a_shipped_recipe_reads(path: Path) -> None:
    recipe = read(path)
    assert recipe.name == path.stem
    assert path.name in SMALL, "say how to run it small"


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_a_shipped_recipe_is_planned(path: Path, tmp_path: Path) -> None:
    """Where the data or the checkpoint is not there, the plan says so in one clear message."""
    missing = _missing(path)
    if missing:
        with pytest.raises(RequestError, match=r"no such|there is no") as caught:
            coterie.run(path, store=tmp_path / "store", out=tmp_path / "out", dry_run=True)
        assert any(str(p) in str(caught.value) or str(p.resolve()) in str(caught.value) for p in missing)
        return
    plan = coterie.run(path, store=tmp_path / "store", out=tmp_path / "out", dry_run=True).plan
    assert len(plan)
    assert len(plan.missing) == len(plan)


def _missing(path: Path) -> list[Path]:
    recipe = read(path)
    named = [Path(str(c.path)) for c in recipe.corpora.values()] + [Path(getattr(recipe.base, "path", path))]
    return [p for p in named if not p.exists()]


def _paths(path: Path) -> list[str]:
    """Point a recipe's data at DATA."""
    at = {"meetings": "qmsum/qmsum_compact.jsonl", "code": "mbpp/mbpp.jsonl"}
    if path.name == "select-prose.yaml":
        at = {"prose": "labelled_prose/labelled_prose.jsonl"}
    if path.name == "merged.yaml":
        at = {"truthfulqa": "truthfulqa/truthfulqa.jsonl", "qmsum": "qmsum/qmsum_compact.jsonl"}
    if path.suffix == ".json":
        return [f"paths.truthfulqa={DATA}/truthfulqa/truthfulqa.jsonl", f"paths.qmsum={DATA}/qmsum/qmsum_compact.jsonl"]
    return [f"corpora.{name}.path={DATA}/{file}" for name, file in at.items()]


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA} (set COTERIE_DATA)")
def test_shipped_recipes_run_whole_on_real_data(tmp_path: Path) -> None:
    torch.manual_seed(0)
    few = ["train.tokens=20_000"]
    store = tmp_path / "store"
    for name in ("two-domains.yaml", "thirty-two-slots.json", "from-checkpoint.yaml", "merged.yaml", "select-prose.yaml"):
        path = ROOT / "recipes" / name
        settings = [*_paths(path), *SMALL[name], *few]
        if name == "from-checkpoint.yaml":
            settings.append(f"base.path={tmp_path}/two-domains/base")
        run = coterie.run(path, store=store, out=tmp_path / path.stem, settings=settings)
        table = run.summary["evaluation"]["losses"]
        assert all(figures["all"]["nll"] < 8 for figures in table.values())
        if name == "thirty-two-slots.json":
            assert run.summary["reuse"]["requested"] == 32
            assert run.summary["reuse"]["distinct"] == 2
            inside = [*settings, "at=layers", "kind=ffn", "router=ridge"]
            merged = coterie.run(path, store=store, out=tmp_path / "merged-slots", settings=inside).summary
            assert len(merged["slots"]["mixture"]) == 32
            assert merged["reuse"]["distinct"] == len(merged["routing"]["mixture"]["experts"]) == 2


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA} (set COTERIE_DATA)")
@pytest.mark.parametrize("name", ["lora-code.yaml", "lora-code-large.yaml", "lora-code-small.yaml"])
def test_mixtures_of_adapters_run_whole_on_real_data(name: str, tmp_path: Path) -> None:
    """Joint training is evaluated on each corpus separately, before and after, and gets better on both."""
    files = {
        "alpaca": "codealpaca/code_alpaca_20k.jsonl",
        "mbpp": "mbpp/mbpp.jsonl",
        "meetings": "qmsum/qmsum_compact.jsonl",
    }
    at = [f"corpora.{corpus}.path={DATA}/{file}" for corpus, file in files.items()]
    limits = ["corpora.alpaca.limit={rows: 2000}", "evaluation.losses.tokens=20_000"]
    run = coterie.run(
        ROOT / "recipes" / name, store=tmp_path / "store", out=tmp_path / "out", settings=[*at, *limits, *SMALL[name]]
    )
    facts = json.loads((tmp_path / "out" / "mixtures" / "joint" / "facts.json").read_text())
    assert all(facts["after"][corpus] < facts["before"][corpus] for corpus in ("alpaca", "mbpp"))
    assert {"alpaca", "mbpp", "all"} <= run.summary["evaluation"]["losses"]["joint"].keys()


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no data at {DATA} (set COTERIE_DATA)")
@pytest.mark.parametrize("name", ["time.yaml", "time-fast.yaml"])
def test_mixtures_over_windows_run_whole_on_real_data(name: str, tmp_path: Path) -> None:
    """Every document is answered as of its own date; an answer as of a date runs the experts of its past."""
    files = {"dated": "dated/dated.jsonl", "first": "dated/dated.jsonl"}
    at = [f"corpora.{corpus}.path={DATA}/{file}" for corpus, file in files.items()]
    few = [
        "train.tokens=12_000",
        "evaluation.losses.tokens=30_000",
        f"evaluation.releases.choices={DATA}/release_qa/release_qa.jsonl",
    ]
    few += [
        "mixtures.learned.router.epochs=2",
        "mixtures.learned.router.tokens=20_000",
        "mixtures.posterior.router={kind: posterior, epochs: 2}",
    ]
    run = coterie.run(
        ROOT / "recipes" / name, store=tmp_path / "store", out=tmp_path / "out", settings=[*at, *SMALL[name], *few]
    )
    table = run.summary["evaluation"]["losses"]
    assert {"average", "posterior", "learned", "coadapted", "unmasked", "y2013", "y2023"} <= table.keys()
    answered = {year for year, figures in table["average"].items() if figures.get("tokens") and year != "all"}
    assert answered
    assert all(year >= "2015" for year in answered)
    assert answered < table["unmasked"].keys()
    releases = run.summary["evaluation"]["releases"]
    assert releases["coadapted"]["2016"]["n"] > 0
    assert run.mixtures["coadapted"].complete("The latest release", time="2016-05-01", max_new_tokens=4)
    with pytest.raises(RequestError, match="no expert may be used"):
        run.mixtures["coadapted"].complete("The latest release", time="2014-05-01", max_new_tokens=4)
