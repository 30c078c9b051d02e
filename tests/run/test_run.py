"""Whole runs, small: the contract of DESIGN section 5 and invariants 9, 11, 12 and 15."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.run.small import BASE, WORDS, recipe, write_corpora, write_corpus

import coterie
from coterie.errors import RequestError


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def done(home: Path) -> Any:
    """One finished run that the tests below look at and change."""
    return coterie.run(recipe(home / "data"), store=home / "store", out=home / "out")


def again(home: Path, raw: dict, out: str = "again", **options: Any) -> dict[str, Any]:
    """Run in the same store; returns the summary."""
    return coterie.run(raw, store=home / "store", out=home / out, **options).summary


def test_the_summary_keeps_the_contract(done: Any) -> None:
    summary = json.loads((done.out / "summary.json").read_text())
    assert summary == json.loads(json.dumps(done.summary))
    assert (summary["schema"], summary["name"]) == (1, "small")
    assert [(s["slot"], s["name"]) for s in summary["slots"]["average"]] == [(0, "fruit"), (1, "tools"), (2, "tools")]
    assert summary["slots"]["average"][1]["expert"] == summary["slots"]["average"][2]["expert"]
    assert len(summary["experts"]) == 2
    for entry in summary["experts"].values():
        assert entry["trained"] is True
        assert entry["tokens"] >= 1500
        assert math.isfinite(entry["loss"])
    table = summary["evaluation"]["losses"]
    assert set(table) == {"fruit", "tools", "average", "posterior", "learned", "best_expert", "oracle", "single"}
    for model in table.values():
        for group in ("fruit", "tools", "all"):
            figure = model[group]
            assert figure["ci95"][0] <= figure["nll"] <= figure["ci95"][1]
            assert figure["perplexity"] == pytest.approx(math.exp(figure["nll"]), rel=1e-5)
            assert figure["tokens"] > 0
    for mixture, routing in summary["routing"].items():
        assert sum(routing["utilization"]) == pytest.approx(1, abs=1e-5), mixture
        assert {"gini", "entropy", "confidence"} <= routing.keys()
    assert summary["routing"]["average"]["utilization"] == pytest.approx([1 / 3, 2 / 3], abs=1e-5)


def test_the_files_of_a_run(done: Any) -> None:
    for name in ("summary.json", "metrics.jsonl", "recipe.json", "report.html"):
        assert (done.out / name).stat().st_size > 100, name
    rows = [json.loads(line) for line in (done.out / "metrics.jsonl").read_text().splitlines()]
    assert {r["expert"] for r in rows} == {*done.summary["experts"], "base", "single"}
    assert sorted(p.name for p in (done.out / "mixtures").iterdir()) == ["average", "learned", "posterior"]


def test_the_resolved_recipe_runs_to_the_same_artifacts(done: Any, home: Path) -> None:
    from coterie.recipe import read

    assert read(done.out / "recipe.json").hash == done.summary["recipe_hash"]
    plan = coterie.run(done.out / "recipe.json", store=home / "store", dry_run=True).plan
    assert len(plan)
    assert not plan.missing


def test_references_are_what_they_say(done: Any) -> None:
    table = done.summary["evaluation"]["losses"]
    for group in ("fruit", "tools"):
        best = min(table[name][group]["nll"] for name in ("fruit", "tools"))
        assert table["oracle"][group]["nll"] == pytest.approx(best)
    assert table["best_expert"]["all"]["nll"] == pytest.approx(min(table[n]["all"]["nll"] for n in ("fruit", "tools")))
    assert table["posterior"]["all"]["nll"] < table["best_expert"]["all"]["nll"], "two domains this far apart must pay"


def test_every_number_has_a_source(done: Any) -> None:
    sources = done.summary["sources"]["losses"]
    assert sources["models"]["fruit"] in done.summary["experts"]
    assert set(sources["data"]) == {"fruit", "tools"}
    assert sources["seed"] == 0
    assert done.summary["recipe_hash"]


def test_figures_from_cached_scores_equal_live_ones(done: Any, home: Path) -> None:
    """The loss in the summary is what the opened mixture says about the very documents."""
    import polars as pl

    from coterie.recipe import read
    from coterie.run.parts import Parts
    from coterie.store import Store

    model = done.mixtures["learned"]
    conductor = Parts(read(recipe(home / "data")), Store(home / "store"))
    nats, tokens = 0.0, 0
    for corpus in WORDS:
        table = pl.read_parquet(conductor.documents(corpus).file("documents.parquet"))
        seen = set(table.filter(pl.col("split") == "train")["content"])
        for row in table.filter(pl.col("split") == "test").iter_rows(named=True):
            if row["content"] in seen:
                continue
            ids = model.tokenizer(row["text"], add_special_tokens=False)["input_ids"]
            bos, eos = model.config.bos_token_id, model.config.eos_token_id
            nll = model.nll(torch.tensor([[bos if bos is not None else eos, *ids, eos]]))
            nats, tokens = nats + nll.sum().item(), tokens + nll.numel()
    figure = done.summary["evaluation"]["losses"]["learned"]["all"]
    if all(len(r) <= 32 for r in [ids]):
        assert tokens == figure["tokens"]
        assert nats / tokens == pytest.approx(figure["nll"], abs=1e-4)


def test_a_dry_run_makes_nothing(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = coterie.run(recipe(home / "data"), store=tmp_path / "empty", out=tmp_path / "o", dry_run=True).plan
    assert len(plan.missing) == len(plan)
    assert not (tmp_path / "o").exists()
    assert not (tmp_path / "empty").exists()
    assert "1,500 tokens" in capsys.readouterr().out


def test_the_designs_recipe_runs_as_printed(tmp_path: Path) -> None:
    """Windows, `from: previous`, strict eligibility and dated choices in one recipe; only the sizes are made small."""
    from tests.recipe.test_read import DESIGN

    data = tmp_path / "data"
    data.mkdir()
    write_corpus(data / "dated.jsonl", [*WORDS["fruit"], *WORDS["tools"]], 600, 3, dated=True)
    rows = [json.loads(line) for line in write_corpora(tmp_path / "plain")["tools"].read_text().splitlines()]
    (data / "mbpp.jsonl").write_text("".join(json.dumps({**r, "task_id": i}) + "\n" for i, r in enumerate(rows)))
    (data / "qmsum_compact.jsonl").write_text("".join(json.dumps({**r, "answer": r["text"]}) + "\n" for r in rows))
    question = {
        "question": "As of then?",
        "options": ["apple", "saw", "fig"],
        "label": 0,
        "option_kinds": ["correct", "past", "future"],
    }
    dates = ["2013-05-01", "2016-05-01", "2024-05-01"]
    (data / "release_qa.jsonl").write_text("".join(json.dumps({**question, "id": d, "date": d}) + "\n" for d in dates))
    (tmp_path / "recipe.yaml").write_text(DESIGN)
    small = [f"base.{k}={json.dumps(v)}" for k, v in BASE.items() if k != "init"]
    small += ["base.pretrain.tokens=1500", "sequence_length=32"]
    small += [f"experts.{i}.train.tokens=1000" for i in range(3)]
    run = coterie.run(tmp_path / "recipe.yaml", store=tmp_path / "store", out=tmp_path / "out", settings=small)
    assert len(run.summary["experts"]) == 8
    table = run.summary["evaluation"]["losses"]
    assert "average" in table
    assert "learned" not in table
    assert any("learned needs a date" in note for note in run.summary["notes"])
    releases = run.summary["evaluation"]["releases"]
    assert set(releases["learned"]["all"]) >= {"accuracy", "future", "past", "irrelevant", "n"}
    assert releases["average"]["all"]["n"] == 3
    assert releases["learned"]["all"]["n"] == 2, "no expert may answer in 2013"
    with pytest.raises(RequestError, match="2015-01-01"):
        run.mixtures["learned"].log_probs(torch.tensor([[5, 6, 7]]), time="2014-12-31")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"evaluation": [{"name": "q", "choices": "none.jsonl"}]}, "none.jsonl"),
        ({"evaluation": [{"name": "l", "corpora": ["fruit"], "by": "colour"}]}, "colour"),
        ({"base": {"path": "no/such/model"}}, "no/such/model"),
        ({"experts": [{"name": "fruit", "corpus": "fruit", "where": {"id": "nobody"}}], "mixtures": []}, "fruit"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_trained(tmp_path: Path, change: dict, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        coterie.run(recipe(tmp_path / "data", **change), store=tmp_path / "store", out=tmp_path / "out")
    assert said in str(caught.value)
    assert not (tmp_path / "store/experts").exists()


def test_the_flat_form_runs(home: Path) -> None:
    write_corpora(home / "flat")
    raw = {
        "name": "flat",
        "datasets": ["fruit"] * 4 + ["tools"] * 4,
        "corpora": {n: {"text": "text"} for n in WORDS},
        "paths": {n: str(home / "flat" / f"{n}.jsonl") for n in WORDS},
        "base": BASE,
        "sequence_length": 32,
        "train": {"tokens": 600, "precision": "fp32"},
    }
    summary = again(home, raw, out="flat-out")
    assert summary["reuse"]["requested"] == 8
    assert summary["reuse"]["distinct"] == 2
    assert len(summary["slots"]["mixture"]) == 8
    experts = list((home / "flat-out/mixtures/mixture/experts").iterdir())
    assert len(experts) == 2, "slots are free on disk"


@pytest.mark.parametrize("kind", ["full", "ffn", "lora"])
def test_experts_of_every_kind_from_a_checkpoint(done: Any, home: Path, kind: str) -> None:
    raw = recipe(home / "data", base={"path": str(done.out / "base")})
    raw["experts"] = [
        {"name": "fruit", "corpus": "fruit", "kind": kind, **({"lora": {"r": 2, "alpha": 4}} if kind == "lora" else {})},
        {"name": "tools", "corpus": "tools"},
    ]
    del raw["single"]
    run = coterie.run(raw, store=home / "store", out=home / f"from-{kind}")
    assert run.summary["evaluation"]["losses"]["posterior"]["all"]["nll"] > 0
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.isfinite(run.experts["fruit"].log_probs(ids)).all()
    assert torch.isfinite(coterie.load(home / f"from-{kind}/mixtures/posterior").nll(ids)).all()


def test_a_checkpoint_that_reads_too_little_is_refused(done: Any, home: Path, tmp_path: Path) -> None:
    raw = recipe(home / "data", base={"path": str(done.out / "base")}, sequence_length=512)
    with pytest.raises(RequestError, match="shorter sequences"):
        coterie.run(raw, store=home / "store", out=tmp_path / "o")


def test_results_need_a_folder(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="need a folder"):
        coterie.run(recipe(home / "data"), store=tmp_path / "store", out=tmp_path / "file")
    assert not (tmp_path / "store/experts").exists()


def test_stages_stop_where_they_are_told(done: Any, home: Path, tmp_path: Path) -> None:
    raw = recipe(home / "data")
    coterie.run(raw, store=home / "store", out=tmp_path / "t", until="experts")
    assert (tmp_path / "t/experts/fruit/config.json").exists()
    assert not (tmp_path / "t/mixtures").exists()
    coterie.run(raw, store=home / "store", out=tmp_path / "m", until="mixtures")
    assert (tmp_path / "m/mixtures/learned/config.json").exists()
    assert json.loads((tmp_path / "m/summary.json").read_text())["evaluation"] == {}


def test_the_python_api(done: Any) -> None:
    model = coterie.load(done.out / "mixtures/learned")
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    assert model.log_probs(ids).shape == (2, 4, model.config.vocab_size)
    assert model.weights(ids).shape == (2, 4, 2)
    assert model.nll(ids).shape == (2, 3)
    assert isinstance(model.complete("apple", max_new_tokens=4), str)
    assert [s["name"] for s in model.slots] == ["fruit", "tools"]
    assert len(model.experts) == 2
    assert done.mixtures["learned"] is done.mixtures["learned"]
    assert sorted(done.experts) == ["fruit", "tools"]
