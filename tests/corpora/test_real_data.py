"""The real data, whole: every file opens, every row is accounted for, and blocks say what their documents say."""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from tests.corpora.conftest import table

from coterie.corpora.blocks import Blocks, pack_blocks
from coterie.corpora.documents import read_corpus
from coterie.corpora.tokenizer import TrainedTokenizer, make_tokenizer
from coterie.corpora.windows import Window
from coterie.select.select_settings import Corpus
from coterie.store import Artifact, Store

DATA = Path(os.environ.get("COTERIE_DATA", Path(__file__).parents[2] / "../shared/data")).resolve()
pytestmark = [pytest.mark.data, pytest.mark.skipif(not DATA.is_dir(), reason=f"no real data in {DATA}: set COTERIE_DATA")]
FILES = {
    "codealpaca/code_alpaca_20k.jsonl": {"prompt": "{instruction}\n{input}\n", "response": "output", "id": "id"},
    "codealpaca/new_codealpaca.jsonl": {"prompt": "{instruction}\n{input}\n", "response": "output", "id": "id"},
    "dated/dated.jsonl": {"text": "{title}\n{text}", "time": "date", "id": "id", "columns": ["slice"]},
    "freshqa/freshqa.jsonl": {"text": "question", "id": "id", "where": {"false_premise": False}},
    "labelled_prose/labelled_prose.jsonl": {"text": "text", "id": "id", "split": {"group": "doc_id"}, "columns": ["format"]},
    "mbpp/mbpp.jsonl": {"text": "{text}\n{code}", "id": "id"},
    "mbpp/sanitized-mbpp.jsonl": {"prompt": "{prompt}\n", "response": "{code}", "id": "task_id"},
    "qmsum/qmsum_compact.jsonl": {"prompt": "query", "response": "answer", "id": "id", "split": {"group": "meeting_id"}},
    "release_qa/release_qa.jsonl": {"text": "{question} {answer}", "time": "date", "id": "id"},
    "release_qa/release_facts.jsonl": {"text": "{project} {version}", "time": "released", "id": "id"},
    "timeqa/timeqa.jsonl": {"text": "{question}\n{evidence}", "id": "id"},
    "truthfulqa/truthfulqa.jsonl": {
        "text": "Question: {question}\nAnswer: {best_answer}",
        "id": "id",
        "columns": ["category"],
    },
    "truthfulqa/TruthfulQA.csv": {"text": "Question: {Question}\nAnswer: {Best Answer}", "columns": ["Category"]},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


def read(store: Store, file: str) -> Artifact:
    return read_corpus(store, Corpus.model_validate({"path": str(DATA / file), **FILES[file]}), label="c")


@pytest.fixture(scope="module")
def tokenizer(store: Store) -> Artifact:
    documents = [read(store, file) for file in ("mbpp/mbpp.jsonl", "qmsum/qmsum_compact.jsonl")]
    return make_tokenizer(store, TrainedTokenizer(train="bpe", vocab_size=2048), documents, label="tokenizer")


@pytest.mark.parametrize("file", FILES)
def test_every_file_opens_and_every_row_is_accounted_for(store: Store, file: str) -> None:
    made = read(store, file)
    facts = made.facts
    if file.endswith(".jsonl"):
        assert facts["read"] == len((DATA / file).read_bytes().splitlines())
    assert facts["quarantined"] == 0, made.file("quarantine.jsonl").read_text()[:300]
    assert facts["read"] == facts["kept"] + facts["filtered"]
    assert facts["kept"] > 0.5 * facts["read"]
    where: dict[str, set[str]] = {}
    for row in table(made):
        where.setdefault(row["content"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in where.values())
    assert all(entry["documents"] for entry in facts["splits"].values())


def test_no_meeting_is_in_two_splits(store: Store) -> None:
    rows = map(json.loads, (DATA / "qmsum/qmsum_compact.jsonl").open())
    meeting = {row["id"]: row["meeting_id"] for row in rows}
    where: dict[str, set[str]] = {}
    for row in table(read(store, "qmsum/qmsum_compact.jsonl")):
        where.setdefault(meeting[row["id"]], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in where.values())


@pytest.mark.parametrize("file", ["qmsum/qmsum_compact.jsonl", "mbpp/mbpp.jsonl"])
def test_blocks_hold_what_the_documents_say(store: Store, tokenizer: Artifact, file: str) -> None:
    from transformers import AutoTokenizer

    stock = AutoTokenizer.from_pretrained(tokenizer.path)
    documents = read(store, file)
    made = Blocks.open(pack_blocks(store, documents, tokenizer, split="test", length=512, label="test"))
    rows = [row for row in table(documents) if row["split"] == "test"]
    assert made.documents["id"].to_list() == [row["id"] for row in rows]
    for number, row in enumerate(rows):
        here = made.document == number
        said = stock.decode(made.ids[here & (made.target == 1)])
        if (made.position[here] == 0).sum() == 1:
            assert said == row["text"] + stock.eos_token
            given = stock.decode(made.ids[here & (made.target == 0)]).removeprefix(stock.bos_token)
            assert (row["prompt"] or "").endswith(given)
        else:
            assert len(said) >= len(row["text"])


def test_windows_share_the_documents_out(store: Store, tokenizer: Artifact) -> None:
    documents = read(store, "dated/dated.jsonl")
    seen: list[str] = []
    for year in range(2013, 2025, 2):
        window = Window(start=date(year, 1, 1), end=date(year + 2, 1, 1))
        made = Blocks.open(pack_blocks(store, documents, tokenizer, split="valid", length=256, window=window, label="valid"))
        assert set(made.documents["slice"]) == {f"{year}-{year + 1}"}
        assert np.isin(made.tokens_per_block, np.arange(2, 257)).all()
        seen += made.documents["id"].to_list()
    assert sorted(seen) == sorted(row["id"] for row in table(documents) if row["split"] == "valid")
