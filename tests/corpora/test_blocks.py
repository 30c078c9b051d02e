"""Blocks: every token a target exactly once, documents apart, prompts masked and cut from their left, exact limits."""

from __future__ import annotations

import itertools
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tests.corpora.conftest import Make, table, write_jsonl

from coterie.corpora.blocks import Blocks, pack_blocks
from coterie.corpora.blocks import pack_blocks as verb
from coterie.corpora.documents import read_corpus
from coterie.corpora.tokenizer import make_tokenizer
from coterie.corpora.windows import Window
from coterie.errors import RequestError
from coterie.select.select_settings import Corpus
from coterie.store import Artifact, DryStore, Store

ALL = {"split": {"valid": 0, "test": 0}}
numbers = itertools.count()


def pieces_of(made: Blocks) -> list[dict[str, Any]]:
    """Every piece, in order: its document, ids, targets; checks that pieces lie apart and padding is empty."""
    found = []
    for ids, position, target, document in zip(made.ids, made.position, made.target, made.document, strict=True):
        starts = [t for t in range(len(ids)) if document[t] >= 0 and position[t] == 0]
        real = int((document >= 0).sum())
        assert (document[:real] >= 0).all()
        assert not ids[real:].any()
        assert not position[real:].any()
        assert not target[real:].any()
        for begin, end in itertools.pairwise([*starts, real]):
            assert len(set(document[begin:end].tolist())) == 1
            assert position[begin:end].tolist() == list(range(end - begin))
            assert target[begin] == 0
            found.append({"document": int(document[begin]), "ids": ids[begin:end].tolist(), "target": target[begin:end]})
    return found


def whole(pieces: list[dict[str, Any]], number: int) -> tuple[list[int], list[int]]:
    """The ids of a document put together again from its overlapping pieces, and how often each is a target."""
    mine = [p for p in pieces if p["document"] == number]
    mine.sort(key=lambda p: -len(p["ids"]))
    for order in itertools.permutations(mine) if len(mine) < 6 else [mine]:
        if all(a["ids"][-1] == b["ids"][0] for a, b in itertools.pairwise(order)):
            ids = order[0]["ids"] + [i for p in order[1:] for i in p["ids"][1:]]
            return ids, [*order[0]["target"].tolist(), *(t for p in order[1:] for t in p["target"][1:].tolist())]
    raise AssertionError("pieces that do not fit together")


words = st.lists(st.sampled_from("the cat sat on a mat, dog! house ünï <|endoftext|>".split()), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Artifact, Path]:
    from coterie.corpora.tokenizer import TrainedTokenizer

    folder = tmp_path_factory.mktemp("blocks")
    store = Store(folder / "store")
    path = write_jsonl(folder / "t.jsonl", [{"text": f"the cat {i} sat on a mat, dog! house"} for i in range(40)])
    made = read_corpus(store, Corpus(path=str(path)), label="c")
    return store, make_tokenizer(store, TrainedTokenizer(train="bpe", vocab_size=280), [made], label="t"), folder


@settings(max_examples=25)
@given(st.lists(words, min_size=1, max_size=12, unique_by=tuple), st.integers(8, 40))
def test_every_token_is_a_target_exactly_once(shared: Any, texts: list[list[str]], length: int) -> None:
    from transformers import AutoTokenizer

    store, tokenizer, folder = shared
    path = write_jsonl(folder / f"{next(numbers)}.jsonl", [{"text": " ".join(t)} for t in texts])
    documents = read_corpus(store, Corpus.model_validate({"path": str(path), **ALL}), label="c")
    artifact = pack_blocks(store, documents, tokenizer, split="train", length=length, label="b")
    made = Blocks.open(artifact)
    stock = AutoTokenizer.from_pretrained(tokenizer.path)
    pieces = pieces_of(made)
    targets = 0
    for row, document in zip(made.documents.to_dicts(), table(documents), strict=True):
        ids = stock(document["text"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        ids = [stock.bos_token_id, *ids, stock.eos_token_id]
        mine = [p for p in pieces if p["document"] == row["row"]]
        assert sum(int(p["target"].sum()) for p in mine) == len(ids) - 1 == row["tokens"]
        if len(mine) < 6:
            assert whole(pieces, row["row"]) == (ids, [0] + [1] * (len(ids) - 1))
        assert (row["id"], row["content"], row["time"]) == (document["id"], document["content"], None)
        targets += len(ids) - 1
    facts = artifact.facts
    assert facts["targets"] == targets == int(made.target.sum())
    assert facts["tokens"] == int(made.tokens_per_block.sum()) == sum(len(p["ids"]) for p in pieces)
    assert (facts["blocks"], facts["length"]) == made.ids.shape
    assert facts["fill"] == facts["tokens"] / made.ids.size


@settings(max_examples=25)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=8, unique_by=str), st.integers(8, 60))
def test_prompts_are_masked_and_cut_from_their_left(
    shared: Any, rows: list[tuple[list[str], list[str]]], length: int
) -> None:
    from tokenizers import Tokenizer

    store, tokenizer, folder = shared
    path = write_jsonl(folder / f"{next(numbers)}.jsonl", [{"q": " ".join(q), "a": " ".join(a)} for q, a in rows])
    corpus = Corpus.model_validate({"path": str(path), "prompt": "q", "response": "a", **ALL})
    documents = read_corpus(store, corpus, label="c")
    artifact = pack_blocks(store, documents, tokenizer, split="train", length=length, label="b")
    plain = Tokenizer.from_file(str(tokenizer.file("tokenizer.json")))
    plain.encode_special_tokens = True
    pieces, cut = pieces_of(Blocks.open(artifact)), 0
    for number, document in enumerate(table(documents)):
        q, a = plain.encode(document["prompt"]).ids, plain.encode(document["text"]).ids
        room = length - 2 - len(a) if len(a) + 2 <= length else length // 4
        kept = q[max(len(q) - room, 0) :]
        cut += len(q) - len(kept)
        mine = [p for p in pieces if p["document"] == number]
        assert sum(int(p["target"].sum()) for p in mine) == len(a) + 1
        if len(mine) < 6:
            assert whole(pieces, number) == ([0, *kept, *a, 0], [0] * (1 + len(kept)) + [1] * (len(a) + 1))
        if len(a) + 2 <= length:
            assert len(mine) == 1
    assert artifact.facts["cut_prompt_tokens"] == cut


@pytest.mark.parametrize("limit", [9, 10, 57, 58, 59, 60, 61, 500])
def test_a_limit_is_exact_and_takes_the_first(store: Store, make: Make, trained: Artifact, limit: int) -> None:
    documents = make([{"text": f"the cat {i} sat " * (1 + i % 7)} for i in range(40)], **ALL)
    made, full = (
        pack_blocks(store, documents, trained, split="train", length=16, limit_tokens=n, label="b") for n in (limit, None)
    )
    expected = 0
    for piece in sorted(pieces_of(Blocks.open(full)), key=lambda p: (p["document"], -len(p["ids"]))):
        if limit - expected >= 2:  # a token alone could be no target
            expected += min(len(piece["ids"]), limit - expected)
    assert made.facts["tokens"] == expected == sum(len(p["ids"]) for p in pieces_of(Blocks.open(made)))
    first = Blocks.open(made).documents["id"].to_list()
    assert first == Blocks.open(full).documents["id"].to_list()[: len(first)]


def test_windows_are_half_open_and_where_picks(store: Store, make: Make, trained: Artifact) -> None:
    days = ["2014-12-31", "2015-01-01", "2015-06-01", "2015-12-31", "2016-01-01"]
    documents = make(
        [{"text": f"cat {d}", "d": d, "kind": "even" if i % 2 == 0 else "odd"} for i, d in enumerate(days)],
        time="d",
        columns=["kind"],
        **ALL,
    )
    window = Window(start=date(2015, 1, 1), end=date(2016, 1, 1))
    made = pack_blocks(store, documents, trained, split="train", length=16, window=window, label="b")
    assert sorted(map(str, Blocks.open(made).documents["time"])) == days[1:4]
    assert (made.facts["first"], made.facts["last"]) == (days[1], days[3])
    asked = {"window": window, "where": {"kind": ["odd"]}}
    made = pack_blocks(store, documents, trained, split="train", length=16, label="b", **asked)
    assert sorted(map(str, Blocks.open(made).documents["time"])) == [days[1], days[3]]
    assert Blocks.open(made).documents["kind"].to_list() == ["odd", "odd"]


def test_reading_and_writing_agree_with_safetensors(store: Store, make: Make, trained: Artifact, monkeypatch) -> None:
    documents = make([{"text": f"the cat {i} sat on " * 9} for i in range(60)], **ALL)
    monkeypatch.setattr(sys.modules["coterie.corpora.blocks"], "_AT_ONCE", 7)
    made = pack_blocks(store, documents, trained, split="train", length=32, label="b")
    opened = Blocks.open(made)
    for name, values in load_file(made.file("blocks.safetensors")).items():
        assert isinstance(getattr(opened, name), np.memmap)
        np.testing.assert_array_equal(getattr(opened, name), values)
    monkeypatch.undo()
    again = pack_blocks(Store(store.root.parent / "two"), documents, trained, split="train", length=32, label="b")
    assert again.files == made.files


def test_equal_content_makes_equal_blocks_whatever_the_names(store: Store, make: Make, trained: Artifact) -> None:
    rows = [{"text": f"cat {i}", "a": i, "b": -i} for i in range(30)]
    one, two = (pack_blocks(store, make(rows, id=c, **ALL), trained, split="train", length=16, label="x") for c in "ab")
    assert one.digest != two.digest
    assert one.content("blocks.safetensors") == two.content("blocks.safetensors")


def test_a_dry_run_plans_on_what_is_not_there_yet(store: Store, make: Make, tmp_path: Path) -> None:
    from coterie.corpora.tokenizer import TrainedTokenizer

    dry = DryStore(store.root)
    documents = make([{"text": "a"}], store=dry)
    tokenizer = make_tokenizer(dry, TrainedTokenizer(train="bpe"), [documents], label="t")
    assert pack_blocks(dry, documents, tokenizer, split="train", length=8, limit_tokens=5, label="b").planned
    assert list(dry.steps.values())[-1].tokens == 5


def test_every_setting_has_blocks_of_its_own(store: Store, make: Make, trained: Artifact) -> None:
    documents, dry = make([{"text": "a", "d": "2015-01-01"}], time="d"), DryStore(store.root)
    window = Window(start=date(2015, 1, 1), end=date(2016, 1, 1))
    plain = {"split": "train", "length": 8, "window": None, "where": None, "limit_tokens": None}
    changes = [{"split": "valid"}, {"length": 9}, {"window": window}, {"where": {"id": "1"}}, {"limit_tokens": 5}]
    asked = [plain, *({**plain, **change} for change in [*changes, {"limit_tokens": 6}])]
    assert len({pack_blocks(dry, documents, trained, label="b", **how).digest for how in asked}) == len(asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"split": "test"},
            "b: no documents in the test split\n  where:    split.test\n"
            "  found:    train 5, valid 0, test 0\n  do:       give the split a larger share, or the corpus more documents",
        ),
        (
            {"window": Window(start=date(2020, 1, 1), end=date(2021, 1, 1))},
            "b: no documents for window [2020-01-01, 2021-01-01)\n  where:    window\n"
            "  found:    5 documents in the train split dated 2014-12-31 to 2018-12-31\n  do:       ask for what is there",
        ),
        (
            {"where": {"kind": "z"}},
            "b: no documents for kind in ['z']\n  where:    where\n"
            "  found:    5 documents in the train split dated 2014-12-31 to 2018-12-31\n  do:       ask for what is there",
        ),
        (
            {"where": {"sort": "z"}},
            "b: the corpus did not keep a column 'sort'\n  where:    where\n"
            "  expected: id, time, content, kind\n  do:       add 'sort' to the corpus's columns",
        ),
    ],
)
def test_nothing_to_pack_is_a_clear_error(store: Store, make: Make, trained: Artifact, asked: dict, message: str) -> None:
    documents = make([{"text": f"{y}", "d": y, "kind": "k"} for y in range(2014, 2019)], time="d", columns=["kind"], **ALL)
    with pytest.raises(RequestError) as caught:
        pack_blocks(store, documents, trained, **{"split": "train", "length": 16, "label": "b", **asked})
    assert str(caught.value) == message


def test_a_window_without_dates_is_a_clear_error(store: Store, make: Make, trained: Artifact) -> None:
    window = Window(start=date(2020, 1, 1), end=date(2021, 1, 1))
    with pytest.raises(RequestError, match="a window on a corpus without dates"):
        verb(store, make([{"text": "a"}], **ALL), trained, split="train", length=16, window=window, label="b")
