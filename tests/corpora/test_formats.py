"""A file format is one declaration: what a recipe accepts, what errors list, what the docs show and who reads."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.corpora.conftest import table

from coterie.corpora import formats
from coterie.corpora.documents import read_corpus
from coterie.corpora.formats import Format, register
from coterie.corpora.source_file import Item, OpenFile, Reader, Row
from coterie.errors import RequestError
from coterie.recipe import read
from coterie.select.select_settings import Corpus
from coterie.store import Store

DOCS = Path(__file__).parents[2] / "docs"


def stanzas(opened: OpenFile) -> Iterator[Item]:
    """A toy: documents with a blank line between them."""
    stream, encoding = opened.text()
    opened.seen.add("text")
    for number, part in enumerate(stream.read().decode(encoding).split("\n\n"), 1):
        yield Row(number, None, {"text": part}, None)


def reader() -> Reader:
    return stanzas


@pytest.fixture
def toy() -> Iterator[Format]:
    made = register(Format("stanzas", "Documents with a blank line between them.", reader, (".poem",)))
    yield made
    del formats.FORMATS[made.tag]


def refused(format: str) -> str:
    with pytest.raises(RequestError) as caught:
        read({"name": "x", "corpora": {"c": {"path": "x.csv", "format": format}}, "experts": [{"name": "e", "corpus": "c"}]})
    return str(caught.value)


def test_a_toy_format_is_read_listed_and_documented(toy: Format, store: Store, tmp_path: Path) -> None:
    for name, more in (("a.poem", {}), ("b", {"format": "stanzas"}), ("c.poem.gz", {})):
        (tmp_path / name).write_text("One sea.\n\nTwo ships.")
        made = read_corpus(store, Corpus.model_validate({"path": str(tmp_path / name), **more}), label="c")
        assert {row["text"] for row in table(made)} == {"One sea.", "Two ships."}
    (tmp_path / "x.unknown").write_text("a")
    with pytest.raises(RequestError, match=r"\.poem"):
        read_corpus(store, Corpus.model_validate({"path": str(tmp_path / "x.unknown")}), label="c")
    assert "expected: stanzas, " in refused("stanza")
    assert "| `stanzas` | `.poem` | Documents with a blank line between them. |" in formats.docs_table()


@pytest.mark.parametrize("twin", [{"tag": "jsonl"}, {"tag": "auto"}, {"tag": "other", "endings": (".md",)}])
def test_a_tag_or_an_ending_belongs_to_one_format(toy: Format, twin: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="of a file format already"):
        register(Format(sentence="", reader=toy.reader, **twin))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("written", "first"), [("josnl", "jsonl"), ("json", "jsonl"), ("parket", "parquet"), ("csv ", "csv"), ("zzz", "auto")]
)
def test_an_unknown_format_lists_those_there_are_the_nearest_first(written: str, first: str) -> None:
    message = refused(written)
    assert "corpora.c.format" in message
    assert f"no file format is called {written!r}" in message
    names = re.search(r"expected: (.*)", message)
    assert names is not None
    listed = names[1].split(", ")
    assert listed[0] == first
    assert sorted(listed) == sorted(["auto", *formats.FORMATS])


def test_the_docs_show_the_declared_formats() -> None:
    page = (DOCS / "concepts/corpora.md").read_text()
    shown = page.partition("<!-- formats: start -->\n")[2].partition("\n<!-- formats: end -->")[0]
    assert shown == formats.docs_table()


def test_declarations_bring_no_reader_with_them() -> None:
    code = "import sys, coterie.corpora.formats; print(*{'numpy', 'pyarrow', 'polars', 'zstandard'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
