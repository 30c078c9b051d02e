"""Tokenizers: nothing is lost, stock libraries open them, equal requests give equal bytes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpora.conftest import Make, table

from coterie.corpora.blocks import Blocks, pack_blocks
from coterie.corpora.documents import read_corpus
from coterie.corpora.tokenizer import TrainedTokenizer, _in_parts, make_tokenizer
from coterie.errors import RequestError
from coterie.store import Artifact, DryStore, Store

ROWS = [{"text": f"the cat {i} sat on the mat; naïve 東京 🙂 {i * i}"} for i in range(80)]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory):
    from tests.corpora.conftest import write_jsonl
    from transformers import AutoTokenizer

    from coterie.select.select_settings import Corpus

    folder = tmp_path_factory.mktemp("tokenizer")
    store = Store(folder / "store")
    documents = read_corpus(store, Corpus(path=str(write_jsonl(folder / "x.jsonl", ROWS))), label="c")
    made = make_tokenizer(store, TrainedTokenizer(train="bpe", vocab_size=320), [documents], label="t")
    return AutoTokenizer.from_pretrained(made.path), made


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back(opened, text: str) -> None:
    tokenizer, _ = opened
    ids = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert all(0 < i < 320 for i in ids)  # 0 ends a document and is nothing that a text can say


def test_stock_transformers_knows_its_special_tokens(opened) -> None:
    tokenizer, made = opened
    assert len(tokenizer) == made.facts["vocab_size"] == 320
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 0)
    assert (made.facts["bos_id"], made.facts["eos_id"]) == (0, 0)
    assert tokenizer.eos_token == "<|endoftext|>"
    assert not list(made.path.glob("*.bin"))


def test_training_is_the_same_in_every_process(make: Make, store: Store, tmp_path: Path) -> None:
    documents = make(ROWS)
    one = make_tokenizer(store, TrainedTokenizer(train="bpe", vocab_size=320), [documents], label="t")
    code = (
        "import sys\nfrom coterie.corpora.documents import read_corpus\n"
        "from coterie.corpora.tokenizer import make_tokenizer\nfrom coterie.select.select_settings import Corpus\n"
        "from coterie.corpora.tokenizer import TrainedTokenizer\n"
        "from coterie.store import *\n"
        "store = Store(sys.argv[1])\n"
        "d = read_corpus(store, Corpus(path=sys.argv[2]), label='other')\n"
        "print(make_tokenizer(store, TrainedTokenizer(train='bpe', vocab_size=320), [d], label='t').digest)"
    )
    for parallel in ("true", "false"):
        out = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / parallel), str(tmp_path / "rows.jsonl")],
            env={**os.environ, "TOKENIZERS_PARALLELISM": parallel},
            capture_output=True,
            text=True,
            check=True,
        )
        assert out.stdout.strip() == one.digest


def test_only_training_documents_are_read_and_the_order_of_corpora_does_not_matter(make: Make, store: Store) -> None:
    a, b = make(ROWS[:40], file="a.jsonl"), make(ROWS[40:], file="b.jsonl")
    spec = TrainedTokenizer(train="bpe", vocab_size=300)
    one, two = (make_tokenizer(store, spec, list(order), label="t") for order in ((a, b), (b, a)))
    assert one.digest == two.digest
    assert one.facts["documents"] == sum(d.facts["splits"]["train"]["documents"] for d in (a, b))
    assert make_tokenizer(store, spec.model_copy(update={"corpora": ("a", "b")}), [a, b], label="t").digest == one.digest


def test_held_out_documents_teach_it_nothing(make: Make, store: Store) -> None:
    split = {"split": {"group": "g", "test": 0.4, "valid": 0.1}, "id": "g"}
    where = {row["id"]: row["split"] for row in table(make([{"text": f"{g}", "g": f"g{g}"} for g in range(40)], **split))}
    rows = [{"text": f"{g} " + ("cat" if s == "train" else "qzx") * 50, "g": g} for g, s in where.items()]
    made = make_tokenizer(store, TrainedTokenizer(train="bpe", vocab_size=280), [make(rows, **split)], label="t")
    vocabulary = json.loads(made.file("tokenizer.json").read_text())["model"]["vocab"]
    assert "cat" in vocabulary
    assert not any("qz" in token or "zx" in token for token in vocabulary)


def test_a_vocabulary_below_the_bytes_is_refused(store: Store, make: Make) -> None:
    with pytest.raises(RequestError, match="vocabulary is too small"):
        make_tokenizer(store, TrainedTokenizer(train="bpe", vocab_size=256), [make(ROWS)], label="t")


def test_an_existing_one_is_copied_and_known_by_its_files(store: Store, opened, tmp_path: Path) -> None:
    _, made = opened
    source = tmp_path / "source"
    shutil.copytree(made.path, source)
    for path in [source, *source.iterdir()]:
        path.chmod(0o755)
    (source / "manifest.json").unlink()  # it holds the files to what they were
    config = json.loads((source / "tokenizer_config.json").read_text())
    del config["bos_token"]
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    assert make_tokenizer(DryStore(store.root), str(source), [], label="t").planned
    copy = make_tokenizer(store, str(source), [], label="t")
    assert copy.content("tokenizer.json") == made.content("tokenizer.json")
    assert copy.facts == {"vocab_size": 320, "bos_id": 0, "eos_id": 0, "documents": 0}
    moved = shutil.move(source, tmp_path / "moved")
    assert make_tokenizer(store, str(moved), [], label="renamed").digest == copy.digest
    (tmp_path / "moved" / "tokenizer_config.json").write_text(
        json.dumps({**config, "auto_map": {"AutoTokenizer": ["x.X", None]}})
    )
    with pytest.raises(RequestError, match="code from elsewhere"):
        make_tokenizer(store, str(moved), [], label="t")
    (tmp_path / "moved" / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "moved" / "tokenizer.json").unlink()
    with pytest.raises(RequestError, match=r"no tokenizer\.json"):
        make_tokenizer(store, str(moved), [], label="t")


def test_a_hub_tokenizer_without_a_network_says_what_to_set(store: Store) -> None:
    with pytest.raises(RequestError, match=r"set base\.tokenizer"):
        make_tokenizer(store, "nobody/nothing", [], label="t")


def test_special_tokens_written_in_a_document_are_text(store: Store, make: Make, trained: Artifact) -> None:
    documents = make([{"text": "a<|endoftext|>b"}], split={"valid": 0, "test": 0})
    made = Blocks.open(pack_blocks(store, documents, trained, split="train", length=32, label="b"))
    ids = made.ids[0][made.document[0] >= 0]
    assert (ids == 0).sum() == 2
    assert ids[0] == ids[-1] == 0


def test_a_word_without_end_is_learned_from_in_time() -> None:
    """Merges within one word cost the square of its length: 400,000 letters took longer than a minute."""
    text = "a" * 35_000
    assert [len(part) for part in _in_parts(text)] == [10_000, 10_000, 10_000, 5_000]
    assert "".join(_in_parts("pear " + text)) == "pear " + text
    assert _in_parts("pear " * 9_000) == ["pear " * 9_000]
    assert _in_parts("pear") == ["pear"]
