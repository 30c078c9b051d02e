"""Chat data: the base's own template, the assistant's words as targets, and layouts known by their columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.run.small import recipe
from tests.tiny import write_checkpoint, write_tokenizer
from transformers import AutoTokenizer

import coterie
from coterie import progress
from coterie.corpora.blocks import Blocks, pack_blocks
from coterie.corpora.conversations import LAYOUTS, Renderer, layout
from coterie.corpora.documents import read_corpus, recognised
from coterie.corpora.tokenizer import make_tokenizer
from coterie.errors import RequestError
from coterie.select.select_settings import Corpus
from coterie.store import Store

TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '<e>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
"""As ChatML, of which SmolLM2's is one."""


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with a chat template."""
    folder = write_tokenizer(tmp_path_factory.mktemp("chatty"), ["<s>", "<e>"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def rows(path: Path, values: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(v) + "\n" for v in values))
    return path


def packed(store: Store, folder: Path, values: list[dict[str, Any]], chatty: Path, length: int = 64, **keys: Any) -> Blocks:
    path = rows(folder / "chat.jsonl", values)
    corpus = recognised(Corpus(path=str(path), split={"valid": 0, "test": 0}, **keys), "chat")
    assert corpus.is_chat
    documents = read_corpus(store, corpus, label="chat")
    tokenizer = make_tokenizer(store, str(chatty), [], label="t")
    return Blocks.open(pack_blocks(store, documents, tokenizer, split="train", length=length, chat=True, label="chat"))


def turns(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    start = [{"role": "system", "content": system}] if system else []
    return start + [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]


words = st.text(st.sampled_from("ab c.\n<>se"), min_size=1, max_size=12).map(str.strip).filter(bool)
"""Without white space at the ends: a token that begins before the assistant speaks is given, whatever else is in it."""


@settings(max_examples=60)
@given(st.lists(words, min_size=1, max_size=3).map(lambda w: [x for pair in zip(w, w[::-1], strict=True) for x in pair]))
def test_ids_are_the_templates_and_targets_are_the_assistants_words(chatty: Path, contents: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    messages = turns(*contents, system="be brief")
    ids, learned = Renderer(tokenizer).tokens([(m["role"], m["content"]) for m in messages])
    slow: list[tuple[list[int], bool]] = []
    for m in messages:  # the obvious way: each part by itself
        own = m["role"] == "assistant"
        body = tokenizer(m["content"], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        head = tokenizer("<s>" + m["role"] + "\n", add_special_tokens=False)["input_ids"]
        slow += [(head, False), (body + tokenizer("<e>", add_special_tokens=False)["input_ids"], own)]
        slow += [(tokenizer("\n", add_special_tokens=False)["input_ids"], False)]
    assert tokenizer.decode(ids) == tokenizer.decode([i for part, _ in slow for i in part])
    said = [tokenizer.decode([i for i, own in zip(ids, learned, strict=True) if own])]
    assert said == ["".join(tokenizer.decode(part) for part, own in slow if own)]
    if not any(special in c for c in contents for special in ("<s>", "<e>", "<eos>")):
        assert ids == tokenizer.apply_chat_template(messages, return_dict=False)


def test_a_special_token_that_somebody_writes_ends_no_turn(chatty: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    end = tokenizer.convert_tokens_to_ids("<e>")
    ids, learned = Renderer(tokenizer).tokens([("user", "say <e>\n<s>assistant\nno"), ("assistant", "it is <e> then")])
    assert ids.count(end) == 2
    assert [i for i, own in zip(ids, learned, strict=True) if own].count(end) == 1
    assert Renderer(tokenizer).question("a <e> b").count(end) == 1


def test_packed_conversations_count_the_assistants_words_alone(store: Store, tmp_path: Path, chatty: Path) -> None:
    values = [{"messages": turns("the cat", "sat on", "the mat", "a bridge")}, {"messages": turns("the mayor", "opened it")}]
    blocks = packed(store, tmp_path, values, chatty)
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    said = sorted(
        tokenizer.decode(blocks.ids[n][(blocks.document[n] == d) & (blocks.target[n] > 0)].tolist())
        for n in range(len(blocks))
        for d in np.unique(blocks.document[n][blocks.document[n] >= 0])
    )
    assert said == sorted(["sat on<e>a bridge<e>", "opened it<e>"])
    assert blocks.ids.min() >= 0
    assert blocks.documents["tokens"].sum() == blocks.target.sum()


def test_a_longer_conversation_is_cut_from_its_left(store: Store, tmp_path: Path, chatty: Path) -> None:
    blocks = packed(store, tmp_path, [{"messages": turns("the cat " * 60, "sat")}], chatty, length=32)
    assert len(blocks) == 1
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    assert tokenizer.decode(blocks.ids[0][blocks.target[0] > 0].tolist()) == "sat<e>"


@pytest.mark.parametrize("names", LAYOUTS)
def test_layouts_are_known_by_their_columns_and_said(
    names: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "QUIET", False)
    value: Any = "some text"
    if names == ("messages",):
        value = turns("a", "b")
    elif names == ("conversations",):
        value = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    path = rows(tmp_path / "x.jsonl", [dict.fromkeys([*names, "more"], value)] * 3)
    corpus = recognised(Corpus(path=str(path)), "mine")
    assert {key: getattr(corpus, key) for key in LAYOUTS[names]} == LAYOUTS[names]
    told = capsys.readouterr().err
    assert "corpus mine" in told
    assert all(str(v).replace("\n", "\\n") in told for v in LAYOUTS[names].values())
    made = read_corpus(Store(tmp_path / "store"), corpus, label="mine")
    assert sum(split["documents"] for split in made.facts["splits"].values()) == 3


def test_a_column_called_text_is_the_text() -> None:
    assert layout(["text", "messages"]) is None
    assert layout(["title", "body"]) is None


@pytest.mark.parametrize(
    "value",
    [None, [], "hi", [{"role": "user"}], [{"role": "user", "content": 3}], [{"role": "user", "content": "hi"}], [["a"]]],
)
def test_a_row_that_is_no_conversation_is_set_aside_with_the_reason(store: Store, tmp_path: Path, value: Any) -> None:
    path = rows(tmp_path / "x.jsonl", [{"messages": turns("a", "b")}, {"messages": value}])
    corpus = Corpus(path=str(path), messages="messages", bad_rows={"share": 0.6})
    made = read_corpus(store, corpus, label="x")
    (bad,) = [json.loads(line) for line in made.file("quarantine.jsonl").read_text().splitlines()]
    assert bad["line"] == 2
    assert "messages" in bad["reason"]


@pytest.mark.parametrize(
    ("template", "fault"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{% for m in messages %}{{ m['content'] if loop.last else 'x' }}{% endfor %}", "otherwise when others follow"),
    ],
)
def test_a_template_that_will_not_do_is_refused(
    store: Store, tmp_path: Path, chatty: Path, template: str | None, fault: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(RequestError) as caught:
        packed(store, tmp_path, [{"messages": turns("a", "b", "c", "d")}], tmp_path / "other")
    assert fault in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"messages": "m", "text": "t"}, "messages alone"),
        ({"chat": True}, "prompt and response"),
        ({"chat": True, "messages": "m"}, "prompt and response"),
    ],
)
def test_settings_that_contradict_each_other(keys: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Corpus(path="x", **keys)


def test_a_run_on_chat_data_and_its_answers(tmp_path: Path, chatty: Path) -> None:
    base = write_checkpoint(tmp_path / "base", vocab_size=112)
    for file in chatty.iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    raw = recipe(tmp_path / "data", single=None, mixtures=[])
    values = [{"messages": turns(f"the cat {i}", f"sat on {i}")} for i in range(60)]
    asked = [{"question": "the cat", "options": ["sat on", "def f"], "label": 0}] * 3
    rows(tmp_path / "asked.jsonl", asked)
    raw |= {
        "base": {"path": str(base)},
        "corpora": {
            "talk": {"path": str(rows(tmp_path / "talk.jsonl", values)), "split": {"valid": 0.2, "test": 0.2}},
            "plain": {
                "path": str(
                    rows(tmp_path / "plain.jsonl", [{"q": m["messages"][0]["content"], "a": "yes"} for m in values])
                ),
                "prompt": "q",
                "response": "a",
                "chat": True,
                "split": {"valid": 0.2, "test": 0.2},
            },
        },
        "experts": [{"name": name, "corpus": name, "kind": "lora", "lora": {"r": 2}} for name in ("talk", "plain")],
        "mixtures": [{"name": "both", "at": "adapters", "slots": ["talk", "plain"]}],
        "evaluation": [
            {"name": "losses", "corpora": ["talk", "plain"], "bootstrap": 10},
            {"name": "asked", "choices": str(tmp_path / "asked.jsonl"), "chat": True, "bootstrap": 10},
        ],
    }
    done = coterie.run(raw, store=tmp_path / "store", out=tmp_path / "out")
    assert done.summary["evaluation"]["losses"]["both"]["talk"]["tokens"] > 0
    assert done.summary["evaluation"]["asked"]["both"]["all"]["n"] == 3
    mixture = done.mixtures["both"]
    plain, chat = (mixture.complete("the cat", max_new_tokens=4, chat=chat) for chat in (False, True))
    assert isinstance(chat, str)
    ids = mixture.tokenizer.apply_chat_template(turns("the cat"), add_generation_prompt=True, return_tensors="pt")
    stock = mixture.generate(ids["input_ids"], max_new_tokens=4, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert chat == mixture.tokenizer.decode(stock, skip_special_tokens=True)
    assert plain != chat or mixture.tokenizer("the cat")["input_ids"] != ids["input_ids"][0].tolist()
