"""Selections on the real labelled prose: topics, planted duplicates, the strategies, order-independence."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from tests.select.texts import corpus, edited, true_jaccard, write

from coterie.select.profiled_corpus import Profiled, profile_corpus
from coterie.select.selection import selection
from coterie.select.selection_report import report
from coterie.select.strategies import STRATEGIES
from coterie.store import Store

DATA = Path(os.environ.get("COTERIE_DATA", Path(__file__).parents[2] / "../shared/data")).resolve()
FILE = DATA / "labelled_prose/labelled_prose.jsonl"
pytestmark = [pytest.mark.data, pytest.mark.skipif(not FILE.is_file(), reason=f"no real data in {DATA}: set COTERIE_DATA")]
PLAN = {
    "budget": {"tokens": 400_000},
    "tokens": {"column": "text_token_length"},
    "keep": {"tokens": [200, 3000]},
    "axes": {"cluster": {"k": 12, "mix": 0.4}, "format": {"mix": 0.2}},
    "rank": {"within": "format"},
    "relax": True,
}


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Profiled:
    given = corpus(str(FILE), PLAN, columns=["domain", "audience"])
    return profile_corpus(Store(tmp_path_factory.mktemp("prose")), given, label="prose")


def test_clusters_follow_the_withheld_domains(prose: Profiled) -> None:
    from sklearn.metrics import normalized_mutual_info_score

    table = prose.pool.table
    assert normalized_mutual_info_score(table["domain"].cast(pl.String), table["cluster"].cast(pl.String)) > 0.6


def test_the_report_on_real_text(prose: Profiled) -> None:
    it = report(prose, prose.chosen)
    assert abs(it["tokens"]["error_percent"]) < 0.5
    assert set(it["unused_labels"]) == {"domain", "audience"}
    names = [name for name in STRATEGIES if name != "plan"]
    for name in names:
        f = it["comparison"]["strategies"][name]
        assert abs(f["tokens"] - 400_000) < 2000
    quality = {n: it["comparison"]["strategies"][n]["mean_quality"] for n in names}
    assert quality["quality"] > quality["balanced"] > quality["random"]
    for entry in it["duplicates"]["recall_on_planted"]:
        if entry["jaccard"] >= 0.8:
            assert entry["recall"] >= 0.9


def test_the_estimate_of_tokens_is_as_good_as_it_says(tmp_path: Path) -> None:
    given = corpus(str(FILE), {"budget": {"docs": 5}, "axes": {"n": {"column": "text_token_length"}}})
    it = profile_corpus(Store(tmp_path), given, label="prose")
    exact = it.pool.table["text_token_length"].cast(pl.Float64).to_numpy()
    off = np.abs(it.pool.table["tokens"].to_numpy() / exact - 1)
    assert off.mean() < 0.06


def test_planted_duplicates_are_found_and_files_do_not_matter(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in FILE.open()][:900]
    draw = random.Random(0)
    copies = []
    for i in range(120):
        text = edited(rows[i]["text"], draw.choice([0.0, 0.01, 0.02, 0.03]), i)
        copies.append({**rows[i], "id": f"copy-{i}", "text": text, "text_token_length": rows[i]["text_token_length"]})
    whole = rows + copies
    one = str(write(tmp_path / "one.jsonl", whole))
    asked = {"budget": {"docs": 400}, "axes": {"cluster": {"k": 8, "mix": 0.5}}, "relax": True}
    it = profile_corpus(Store(tmp_path / "a"), corpus(one, asked), label="prose")
    ids = pl.read_parquet(selection(it).file("selected.parquet"))["id"].to_list()

    text = {r["id"]: r["text"] for r in whole}
    kept = {i for i, d in zip(it.pool.ids(np.arange(len(it.pool.table))), it.pool.table["dropped"], strict=True) if d == 0}
    near = [i for i in range(120) if true_jaccard(rows[i]["text"], copies[i]["text"]) >= 0.7]
    both = [i for i in near if rows[i]["id"] in kept and f"copy-{i}" in kept]
    assert len(near) > 80
    assert not both, "no pair at or above the threshold stays"
    at_08 = [i for i in near if true_jaccard(rows[i]["text"], copies[i]["text"]) <= 0.85]
    assert len(at_08) > 10
    sample = draw.sample(ids, 150)
    assert not [(a, b) for n, a in enumerate(sample) for b in sample[:n] if true_jaccard(text[a], text[b]) >= 0.7]

    shuffled = draw.sample(whole, len(whole))
    paths = [str(write(tmp_path / f"{i}.jsonl", shuffled[i::4])) for i in range(4)]
    again = profile_corpus(Store(tmp_path / "b"), corpus(paths, asked), label="prose")
    assert pl.read_parquet(selection(again).file("selected.parquet"))["id"].to_list() == ids
