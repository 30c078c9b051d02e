"""Figures against a slow reference that walks over tokens; references, groups, what is left out, what is refused."""

from __future__ import annotations

import math
from collections import defaultdict
from datetime import date

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from coterie.errors import RequestError, WorkError
from coterie.evaluation.compare import tables
from coterie.evaluation.losses import TokenLosses, evaluate_losses
from coterie.evaluation.metrics import Losses
from coterie.store import Artifact, DryStore, Store


def scored(name: str, nll: np.ndarray, answered: np.ndarray | None = None) -> TokenLosses:
    return TokenLosses(f"digest of {name}", f"scores of {name} {nll.sum()}", lambda: (nll, answered))


def random_models(names: list[str], corpora: dict[str, Artifact], seed: int = 0) -> dict[str, dict[str, TokenLosses]]:
    rng = np.random.default_rng(seed)
    shapes = {c: load_file(b.file("blocks.safetensors"))["target"][:, 1:].shape for c, b in corpora.items()}
    return {n: {c: scored(n, rng.gamma(2, 1, s).astype(np.float32)) for c, s in shapes.items()} for n in names}


def by_hand(corpora: dict[str, Artifact], sources: dict[str, TokenLosses], group_of) -> dict[str, tuple[float, int, int]]:
    """(nats a token, tokens, documents) by group, one token at a time."""
    nats, tokens, documents = defaultdict(float), defaultdict(int), defaultdict(set)
    for corpus, blocks in corpora.items():
        arrays = load_file(blocks.file("blocks.safetensors"))
        table = pl.read_parquet(blocks.file("documents.parquet")).to_dicts()
        nll, answered = sources[corpus].load()
        unanswered = {
            arrays["document"][n, t + 1]
            for n, t in np.ndindex(nll.shape)
            if arrays["target"][n, t + 1] and answered is not None and not answered[n, t]
        }
        for n, t in np.ndindex(nll.shape):
            d = arrays["document"][n, t + 1]
            if arrays["target"][n, t + 1] and d not in unanswered:
                for group in (group_of(corpus, table[d]), "all"):
                    nats[group] += float(nll[n, t])
                    tokens[group] += 1
                    documents[group].add((corpus, d))
    return {g: (nats[g] / tokens[g], tokens[g], len(documents[g])) for g in nats}


def run(store: Store, spec: Losses, corpora, models, experts, **options) -> dict:
    art = evaluate_losses(
        store,
        name=spec.name,
        by=spec.by,
        resamples=spec.bootstrap,
        corpora=corpora,
        models=models,
        experts=experts,
        seed=0,
        label="losses",
        **options,
    )
    return {**tables(art, list(models), list(corpora)), "artifact": art}


SPEC = Losses(name="losses", corpora=("a", "b"), bootstrap=200)


def test_figures_and_references(store: Store, make_blocks) -> None:
    corpora = {"a": make_blocks("a", 7), "b": make_blocks("b", 5)}
    models = random_models(["x", "y", "z", "mix"], corpora)
    result = run(store, SPEC, corpora, models, ["x", "y", "z"], against=["mix"])
    table = result["evaluation"]
    expected = {m: by_hand(corpora, s, lambda corpus, row: corpus) for m, s in models.items()}
    for model, groups in expected.items():
        assert list(table[model]) == ["a", "b", "all"]
        for group, (nll, tokens, documents) in groups.items():
            entry = table[model][group]
            assert entry["nll"] == pytest.approx(nll, abs=1e-9)
            assert entry["perplexity"] == pytest.approx(math.exp(nll))
            assert (entry["tokens"], entry["documents"], entry["skipped"]) == (tokens, documents, 0)
            assert entry["ci95"][0] < nll < entry["ci95"][1]
    best = min(["x", "y", "z"], key=lambda m: expected[m]["all"][0])
    assert table["best_expert"] == {g: {**table[best][g], "expert": best} for g in ("a", "b", "all")}
    total = 0.0
    for group in ("a", "b"):
        there = min(["x", "y", "z"], key=lambda m: expected[m][group][0])
        assert table["oracle"][group] == {**table[there][group], "expert": there}
        total += expected[there][group][0] * expected[there][group][1]
    assert table["oracle"]["all"]["nll"] == pytest.approx(total / expected["x"]["all"][1])
    assert "expert" not in table["oracle"]["all"]
    assert set(result["differences"][best]) == {"mix"}
    assert set(result["differences"]["mix"]) == {"best_expert"}
    found = result["differences"]["mix"]["best_expert"]["b"]
    assert found["nll"] == pytest.approx(expected["mix"]["b"][0] - expected[best]["b"][0])
    sources = result["sources"]
    assert sources["models"] == {m: f"digest of {m}" for m in models}
    assert sources["data"] == {c: b.digest for c, b in corpora.items()}
    assert (sources["seed"], sources["bootstrap"], sources["artifact"]) == (0, 200, result["artifact"].digest)
    assert sources["tokens"] == table["x"]["all"]["tokens"]


def test_a_document_that_cannot_be_answered_is_left_out_for_that_model(store: Store, make_blocks) -> None:
    corpora = {"a": make_blocks("a", 6), "b": make_blocks("b", 6)}
    models = random_models(["x", "mix", "never"], corpora)
    for name, keep in (("mix", 0.9), ("never", 0.0)):
        for c in corpora:
            nll, _ = models[name][c].load()
            answered = np.random.default_rng(1).random(nll.shape) < keep
            models[name][c] = scored(name, np.where(answered, nll, np.nan), answered)
    result = run(store, SPEC, corpora, models, ["x", "mix"])
    for group, (nll, tokens, documents) in by_hand(corpora, models["mix"], lambda corpus, row: corpus).items():
        entry = result["evaluation"]["mix"][group]
        assert (entry["nll"], entry["tokens"], entry["documents"]) == (pytest.approx(nll), tokens, documents)
        assert entry["skipped"] == result["evaluation"]["x"][group]["documents"] - documents > 0
    never = result["evaluation"]["never"]["all"]
    assert (never["nll"], never["ci95"], never["documents"], never["skipped"]) == (None, None, 0, 24)
    assert result["evaluation"]["best_expert"]["all"]["expert"] == "x"  # `mix` answers too little to be a reference
    assert result["differences"]["mix"]["best_expert"]["all"]["documents"] == result["evaluation"]["mix"]["all"]["documents"]


def test_groups_by_a_column_and_by_year(store: Store, make_blocks) -> None:
    kind = ["prose", "code", None, "all"] * 3
    times = [date(2013 + i % 3, 5, 1) for i in range(12)]
    corpora = {"a": make_blocks("a", 6, kind=kind, times=times), "b": make_blocks("b", 6, seed=1, kind=kind, times=times)}
    models = random_models(["x", "y"], corpora)
    names = {None: "none", "all": "kind=all"}
    cases = [("kind", lambda c, r: names.get(r["kind"], r["kind"])), ("year", lambda c, r: str(r["time"].year))]
    for by, group_of in cases:
        spec = SPEC.model_copy(update={"by": by})
        table = run(store, spec, corpora, models, ["x", "y"])["evaluation"]
        for group, (nll, tokens, _) in by_hand(corpora, models["x"], group_of).items():
            assert (table["x"][group]["nll"], table["x"][group]["tokens"]) == (pytest.approx(nll), tokens)
        assert len(table["x"]) == (5 if by == "kind" else 4)
    with pytest.raises(RequestError, match="no column 'topic'") as error:
        run(store, SPEC.model_copy(update={"by": "topic"}), corpora, models, ["x"])
    assert "kind" in str(error.value)
    assert "corpora.a.columns" in str(error.value)


def test_year_needs_a_time(store: Store, make_blocks) -> None:
    corpora = {"a": make_blocks("a", 3)}
    with pytest.raises(RequestError, match="no document has a time"):
        run(store, SPEC.model_copy(update={"by": "year"}), corpora, random_models(["x"], corpora), ["x"])


def test_new_names_are_evaluated_already_and_new_scores_are_not(store: Store, make_blocks) -> None:
    corpora = {"a": make_blocks("a", 4)}
    models = random_models(["x", "y"], corpora)
    first = run(store, SPEC, corpora, models, ["x", "y"])
    renamed = {f"new-{n}": s for n, s in models.items()}
    again = run(
        store,
        SPEC.model_copy(update={"name": "other"}),
        {"c": corpora["a"]},
        {n: {"c": s["a"]} for n, s in renamed.items()},
        list(renamed),
    )
    assert again["artifact"].digest == first["artifact"].digest
    assert again["evaluation"]["new-x"]["c"] == first["evaluation"]["x"]["a"]
    other = run(store, SPEC, corpora, {**models, "y": random_models(["y"], corpora, seed=9)["y"]}, ["x", "y"])
    assert other["artifact"].digest != first["artifact"].digest


def test_a_dry_run_reads_nothing(store: Store, make_blocks) -> None:
    corpora = {"a": make_blocks("a", 4)}

    def unread() -> None:
        raise AssertionError("read")

    dry = DryStore(store.root)
    evaluate_losses(
        dry,
        name=SPEC.name,
        by=SPEC.by,
        resamples=SPEC.bootstrap,
        corpora=corpora,
        models={"x": {"a": TokenLosses("m", "s", unread)}},
        experts=["x"],
        seed=0,
        label="losses",
    )
    assert [(s.kind, s.cached) for s in dry.steps.values()] == [("evaluations", False)]


def test_a_loss_that_is_not_finite_is_never_published(store: Store, make_blocks) -> None:
    corpora = {"a": make_blocks("a", 4)}
    models = random_models(["x"], corpora)
    nll, _ = models["x"]["a"].load()
    nll[:] = np.inf
    with pytest.raises(WorkError, match="not finite") as error:
        run(store, SPEC, corpora, models, ["x"])
    assert "model x" in str(error.value)
    assert not list((store.root / "evaluations").glob("*"))


def test_paired_is_the_difference_and_surer_than_either(store: Store, make_blocks) -> None:
    corpora = {"a": make_blocks("a", 40), "b": make_blocks("b", 40, seed=1)}
    models = random_models(["x"], corpora)
    models["y"] = {c: scored("y", s.load()[0] + np.float32(0.1)) for c, s in models["x"].items()}
    result = run(store, SPEC, corpora, models, ["x", "y"], against=["x"])
    found = result["differences"]["y"]["best_expert"]
    assert found["all"]["nll"] == pytest.approx(0.1, abs=1e-6)
    assert found["all"]["ci95"] == pytest.approx([0.1, 0.1], abs=1e-5)
    assert found["a"]["documents"] == 80
    assert np.isfinite(load_file(result["artifact"].file("documents.safetensors"))["sums"]).all()
    entry = result["evaluation"]["x"]["all"]["ci95"]
    assert entry[1] - entry[0] > 0.1
