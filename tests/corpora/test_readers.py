"""Readers: the rows that went in come out with their lines; what is bad is named and kept; nothing is lost or invented."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpora.conftest import table

from coterie.corpora.documents import read_corpus, rows
from coterie.corpora.lines import LONGEST
from coterie.corpora.source_file import Bad, Row
from coterie.corpora.sources import resolve
from coterie.errors import RequestError
from coterie.select.select_settings import Corpus
from coterie.store import Store

text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


def read(path: Path, columns: str = "text id", **recipe: Any) -> list[Row | Bad]:
    corpus = Corpus.model_validate({"path": str(path), **recipe})
    (source,) = resolve(corpus, "c")
    return [item for item, _ in rows(source, corpus.encoding, frozenset(columns.split()), set(), "corpora.c")]


good = st.dictionaries(text, st.one_of(text, st.integers(), st.none(), st.lists(text, max_size=2)), max_size=3).map(
    lambda row: (json.dumps(row, ensure_ascii=False).encode(), row)
)
bad = st.sampled_from(
    [
        b'{"text": "a"',
        b'{"text": "a"}}',
        b'{"text": "a"} {"text": "b"}',
        b'["a"]',
        b'"a"',
        b"1",
        b"null",
        b"{'a': 1}",
        b'{"a": 1, "a": 1}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"text": "caf\xe9"}',
        b'{"text": "\x93a\x94"}',
        b'{"text": "a\tb"}',
        b'{"text": "a\0b"}',
        b"\x80\xfe\x00",
        b"x",
        b'{"a": 1' + b"0" * 5000 + b"}",
        b"[" * 3000,
        b'{"text": "\\ud83d"} x',
    ]
).map(lambda raw: (raw, None))
blank = st.sampled_from([b"", b"  ", b"\t\r"]).map(lambda raw: (raw, "blank"))
line = st.one_of(good, bad, blank)
content = st.lists(line, min_size=1, max_size=12).filter(lambda lines: any(value != "blank" for _, value in lines))


@settings(max_examples=100)
@given(content, st.sampled_from(["\n", "\r\n"]))
def test_jsonl_rows_have_their_line_offset_and_bytes(tmp_path: Path, lines: list[tuple[bytes, Any]], end: str) -> None:
    path = tmp_path / "x.jsonl"
    raws = [raw + end.encode() for raw, _ in lines]
    path.write_bytes(b"".join(raws))
    offset, expected = 0, []
    for number, (raw, (_, value)) in enumerate(zip(raws, lines, strict=True), 1):
        if value != "blank":
            expected.append((number, offset, raw, value))
        offset += len(raw)
    found = read(path)
    assert [(i.line, i.offset, i.raw, i.values if isinstance(i, Row) else None) for i in found] == expected
    assert all(item.reason for item in found if isinstance(item, Bad))


@pytest.mark.parametrize("name", ["jsonl", "csv", "parquet", "arrow", "text"])
@settings(max_examples=100)
@given(data=st.data())
def test_any_bytes_are_rows_bad_rows_or_one_clear_error(name: str, tmp_path: Path, data: st.DataObject) -> None:
    """500 files of noise: whole, compressed, cut off, and with bytes changed."""
    start = {
        "jsonl": b'{"text": "a", "id": "1"}\n{"text": "b", "id": "2"}\n',
        "csv": b'id,text\n1,"a ""b"" c"\n2,d\n',
        "text": b"some text\n",
    }.get(name)
    if start is None:
        stream, rowset = io.BytesIO(), pa.table({"id": ["1", "2"], "text": ["a", "b"]})
        if name == "parquet":
            pq.write_table(rowset, stream)
        else:
            with pa.ipc.new_stream(stream, rowset.schema) as writer:
                writer.write_table(rowset)
        start = stream.getvalue()
    pack = data.draw(st.sampled_from([bytes, gzip.compress, zstandard.compress]))
    raw = bytearray(pack(start))
    for place, value in data.draw(st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=4)):
        raw[place] = value
    raw = raw[: data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))]
    path = tmp_path / f"x.{name}"
    path.write_bytes(bytes(raw))
    recipe = {"path": str(path), "format": name, "bad_rows": {"share": 1.0, "most": 1000}, "encoding": "utf-8"}
    store = Store(tmp_path / f"store-{data.draw(st.integers(0, 2**60))}")
    try:
        made = read_corpus(store, Corpus.model_validate(recipe), label="c")
    except RequestError as error:
        message = str(error)
        assert "corpora.c" in message or str(path) in message
        return
    facts = made.facts
    assert facts["read"] == facts["kept"] + facts["filtered"] + facts["quarantined"]
    assert facts["kept"] == len(table(made)) == sum(s["documents"] for s in facts["splits"].values())
    assert facts["quarantined"] == len(made.file("quarantine.jsonl").read_text().splitlines())


@settings(max_examples=40)
@given(st.lists(st.tuples(text, text), min_size=1, max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_csv_rows_have_their_physical_line(tmp_path: Path, cells: list[tuple[str, str]], end: str) -> None:
    path = tmp_path / "x.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer, lines = csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL), []
        writer.writerow(["id", "text"])
        for row in cells:
            file.flush()
            lines.append((path.read_bytes().count(b"\n") + 1, path.stat().st_size))
            writer.writerow(row)
    found = read(path)
    assert [i.values for i in found if isinstance(i, Row)] == [{"id": a, "text": b} for a, b in cells]
    assert [(i.line, i.offset) for i in found] == lines


def test_csv_rows_that_are_bad_do_not_take_others_with_them(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b'\xef\xbb\xbfid,text\n1,a\n2\n3,caf\xe9\n4,"x\ny"\n5,"b"c\n\n6,d\n')
    found = read(path)
    assert [(i.line, getattr(i, "reason", None)) for i in found] == [
        (2, None),
        (3, "1 fields (expected 2)"),
        (4, "byte 0xE9 at offset 22 is not UTF-8 (looks like latin-1)"),
        (5, None),
        (7, "bad CSV (',' expected after '\"')"),
        (9, None),
    ]
    assert b"".join(i.raw or b"" for i in found) == path.read_bytes()[11:].replace(b"\n\n", b"\n")


@given(st.lists(text, min_size=1, max_size=30))
@settings(max_examples=10)
def test_every_container_gives_the_same_rows(tmp_path: Path, texts: list[str]) -> None:
    import datasets

    values = [{"id": str(i), "text": t} for i, t in enumerate(texts)]
    lines = "".join(json.dumps(v) + "\n" for v in values).encode()
    half = len(lines) // 2
    files = {
        "a.jsonl": b"\xef\xbb\xbf" + lines,
        "a.jsonl.gz": gzip.compress(lines[:half]) + gzip.compress(lines[half:]),
        "a.jsonl.zst": zstandard.compress(lines[:half]) + zstandard.compress(lines[half:]),
        "really-gzip.jsonl": gzip.compress(lines),
        "wide.jsonl": "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values).encode("utf-16"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        found = read(tmp_path / name, encoding="utf-16" if name.startswith("wide") else "utf-8")
        assert [i.values for i in found if isinstance(i, Row)] == values, name
    rowset = pa.Table.from_pylist(values)
    pq.write_table(rowset, tmp_path / "a.parquet", row_group_size=7)
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, rowset.schema) as writer:
        writer.write_table(rowset, max_chunksize=7)
    datasets.disable_progress_bars()
    datasets.Dataset.from_list(values).save_to_disk(tmp_path / "saved")
    for name in ("a.parquet", "a.arrow", "saved"):
        found = read(tmp_path / name)
        assert [(i.line, i.values) for i in found if isinstance(i, Row)] == list(enumerate(values, 1)), name


def test_bad_text_in_a_parquet_file_costs_its_row_only(tmp_path: Path) -> None:
    raw = pa.StringArray.from_buffers(3, pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffc"))
    pq.write_table(pa.table({"text": raw}), tmp_path / "x.parquet")
    found = read(tmp_path / "x.parquet")
    assert [i.values["text"] if isinstance(i, Row) else i.reason for i in found] == [
        "a",
        "damaged values, or text that is not UTF-8",
        "c",
    ]


def test_what_is_set_aside_can_be_put_back(store: Store, tmp_path: Path) -> None:
    lines = [
        b'{"text": "one"}\n',
        b'{"text": "caf\xe9"}\n',
        b'{"text": null}\n',
        b"\n",
        b'{"text": "two"} x\n',
        b'{"text": "3"}',
    ]
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"".join(lines))
    corpus = Corpus.model_validate({"path": str(path), "bad_rows": {"share": 1, "most": 3}})
    made = read_corpus(store, corpus, label="c")
    aside = [json.loads(row) for row in made.file("quarantine.jsonl").read_text().splitlines()]
    assert [(row["line"], row["offset"], row["reason"]) for row in aside] == [
        (2, 16, "byte 0xE9 at offset 29 is not UTF-8 (looks like latin-1)"),
        (3, 33, 'field "text" is null (expected a string)'),
        (5, 49, "more than one JSON value on the line at column 17"),
    ]
    raws = [row["raw"].encode() if "raw" in row else base64.b64decode(row["raw_base64"]) for row in aside]
    assert raws == [lines[1], lines[2], lines[4]]
    assert {row["file"] for row in aside} == {str(path)}
    assert made.facts["read"] == 5
    assert (made.facts["kept"], made.facts["quarantined"]) == (2, 3)


def test_a_folder_of_text_files(store: Store, tmp_path: Path) -> None:
    files = {
        "a.txt": "A",
        "sub/b.md": "B",
        "sub/deep/c.py": "C = 1",
        "sub/empty.txt": " \n",
        "picture.png": "no",
        ".git/d.txt": "D",
    }
    for name, content in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(content)
    made = read_corpus(store, Corpus(path=str(tmp_path / "in"), columns=("folder",)), label="c")
    assert {(d["id"], d["text"], d["folder"]) for d in table(made)} == {
        ("a.txt", "A", ""),
        ("sub/b.md", "B", "sub"),
        ("sub/deep/c.py", "C = 1", "sub/deep"),
    }
    assert made.facts["reasons"] == {"empty": 1}


def test_a_line_too_long_for_a_document_is_set_aside_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(b'{"text": "one"}\n{"text": "')
        for _ in range(64):
            file.write(b"a" * (1 << 20))
        file.write(b'"}\n{"text": "three"}\n')
    tracemalloc.start()
    found = read(path)
    assert tracemalloc.get_traced_memory()[1] < 5 * LONGEST
    tracemalloc.stop()
    assert [i.line for i in found] == [1, 2, 3]
    assert isinstance(found[1], Bad)
    assert "67,108,877 bytes" in found[1].reason
    assert isinstance(found[2], Row)
    assert found[2].offset == 16 + 67_108_877
