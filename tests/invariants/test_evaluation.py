"""DESIGN section 3, 11 and 15: what is evaluated was not trained on, by content; every number has a source."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.tiny import expert_artifact, llama, scores_artifact

from coterie.corpora.blocks import Blocks, pack_blocks
from coterie.corpora.documents import read_corpus
from coterie.corpora.tokenizer import make_tokenizer
from coterie.evaluation.choices import Asked, evaluate_choices
from coterie.evaluation.compare import tables
from coterie.evaluation.leaks import check_leaks
from coterie.evaluation.losses import TokenLosses, evaluate_losses
from coterie.evaluation.metrics import Choices
from coterie.evaluation.questions import read_questions
from coterie.select.select_settings import Corpus
from coterie.store import Artifact, Store

WORDS = "the cat sat on a mat while it rained and the mayor opened one more bridge in town".split()


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(seed: int, count: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"{seed} {i} " + " ".join(rng.choice(WORDS, 24)) for i in range(count)]


@pytest.fixture
def parts(tmp_path: Path, store: Store, tiny_tokenizer: Path) -> dict[str, tuple[Artifact, Artifact]]:
    """What is tested of one corpus, and what is trained on of another that holds some of it, re-wrapped, and some more with
    another ending."""
    tested = texts(1, 40)
    copies = [t.replace(" ", "\n ") for t in tested[:20]]
    near = [t + " and so it ended" for t in tested[20:30]]
    reader = make_tokenizer(store, str(tiny_tokenizer), [], label="tokenizer")

    def part(name: str, documents: list[str], split: str, shares: dict) -> tuple[Artifact, Artifact]:
        path = write(tmp_path / f"{name}.jsonl", [{"id": f"{name}-{i}", "text": t} for i, t in enumerate(documents)])
        corpus = Corpus.model_validate({"path": str(path), "text": "text", "id": "id", "split": shares})
        read = read_corpus(store, corpus, label=name)
        return pack_blocks(store, read, reader, split=split, length=64, label=name), read

    return {
        "tested": part("tested", tested, "test", {"valid": 0.0, "test": 0.5}),
        "trained": part("trained", copies + near + texts(2, 40), "train", {"valid": 0.0, "test": 0.0}),
    }


def test_nothing_evaluated_was_trained_on(parts: dict, store: Store, tiny_tokenizer: Path) -> None:
    (blocks, _), (trained, _) = parts["tested"], parts["trained"]
    check = check_leaks(store, evaluated=[parts["tested"]], trained=[parts["trained"]])
    by_id = dict(Blocks.open(blocks).documents.select("id", "content").iter_rows())
    known = set(Blocks.open(trained).documents["content"])
    leaked = {i for i, content in by_id.items() if content in known}
    assert leaked == {i for i in by_id if int(i.removeprefix("tested-")) < 20}
    assert leaked
    assert {d["id"] for d in check.facts["named"]["exact"]} == leaked
    assert {d["id"] for d in check.facts["named"]["near"]} == {i for i in by_id if 20 <= int(i.removeprefix("tested-")) < 30}
    expert = expert_artifact(store, "x", llama(1), tiny_tokenizer)
    losses = TokenLosses.of(expert, scores_artifact(store, "x", expert, blocks))
    made = evaluate_losses(
        store,
        name="e",
        by=None,
        resamples=20,
        corpora={"c": blocks},
        models={"x": {"c": losses}},
        experts=["x"],
        leaks=check,
        seed=0,
        label="e",
    )
    table = tables(made, ["x"], ["c"])
    assert table["evaluation"]["x"]["all"]["documents"] == len(by_id) - len(leaked)
    assert set(table["sources"]["removed"]) == leaked


def test_questions_that_were_trained_on_are_named(parts: dict, store: Store, tmp_path: Path) -> None:
    seen = texts(1, 1)[0].rsplit(" ", 1)
    rows = [
        {"question": seen[0], "options": ["no", seen[1]], "label": 1},
        {
            "question": "What is the name of the longest river that nobody here has ever seen?",
            "options": ["a", "b"],
            "label": 0,
        },
    ]
    spec = Choices(name="quiz", choices=str(write(tmp_path / "quiz.jsonl", rows)))
    check = check_leaks(store, evaluated=[], trained=[parts["trained"]], questions=[read_questions(spec)])
    assert check.facts["evaluated"] == 2
    assert [seen[0].startswith(d["id"]) for d in check.facts["named"]["near"]] == [True]


def test_every_number_has_a_source(parts: dict, store: Store, tmp_path: Path, tiny_tokenizer: Path) -> None:
    """Artifact, data, seed, token count: each names something that the store holds, or that was asked."""
    blocks, _ = parts["tested"]
    expert = expert_artifact(store, "x", llama(1), tiny_tokenizer)
    losses = TokenLosses.of(expert, scores_artifact(store, "x", expert, blocks))
    made = evaluate_losses(
        store,
        name="e",
        by=None,
        resamples=20,
        corpora={"c": blocks},
        models={"x": {"c": losses}},
        experts=["x"],
        seed=3,
        label="e",
    )
    source = tables(made, ["x"], ["c"])["sources"]
    assert source["models"] == {"x": expert.digest}
    assert source["data"] == {"c": blocks.digest}
    assert (store.root / "evaluations" / source["artifact"]).is_dir()
    assert source["tokens"] == int((Blocks.open(blocks).target[:, 1:] != 0).sum())
    assert (source["seed"], source["bootstrap"]) == (3, 20)

    rows = [{"question": "the cat", "options": ["sat on", "x"], "label": 0}] * 3
    spec = Choices(name="quiz", choices=str(write(tmp_path / "quiz.jsonl", rows)), bootstrap=20)
    questions = read_questions(spec)

    def opened() -> tuple:
        from transformers import AutoTokenizer

        return llama(1), AutoTokenizer.from_pretrained(tiny_tokenizer)

    made = evaluate_choices(
        store,
        by=spec.by,
        resamples=spec.bootstrap,
        questions=questions,
        models={"x": Asked(expert.digest, opened)},
        experts=["x"],
        seed=3,
        label="quiz",
    )
    source = tables(made, ["x"])["sources"]
    assert source["models"] == {"x": expert.digest}
    assert source["data"] == {"file": questions.digest}
    assert (source["seed"], source["documents"]) == (3, 3)
    assert source["tokens"] > 0
