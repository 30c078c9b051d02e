"""Bad data: each fault ends in one message that says what, where, what was expected and found, and what to do.

The messages are compared whole: they are part of what a person gets. `DIR` stands for the folder of the data.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
import zstandard

from coterie.corpora.documents import read_corpus
from coterie.errors import RequestError
from coterie.select.select_settings import Corpus
from coterie.store import Store

GOOD = b'{"text": "a good row"}\n'
BEAR = {"bad_rows": {"share": 1.0, "most": 100}}


def read(folder: Path, data: bytes, name: str = "x.jsonl", **recipe: Any) -> Any:
    (folder / name).write_bytes(data)
    corpus = Corpus.model_validate({"path": str(folder / name), **recipe})
    return read_corpus(Store(folder / "store"), corpus, label="code")


def refused(folder: Path, data: bytes, name: str = "x.jsonl", **recipe: Any) -> str:
    with pytest.raises(RequestError) as caught:
        read(folder, data, name, **recipe)
    assert caught.value.exit_code == 2
    assert not list((folder / "store").glob("corpora/*")), "something was published"
    assert not list((folder / "store").glob("temp/*")), "something was left over"
    return str(caught.value).replace(str(folder), "DIR")


BORNE = [
    (b'{"text": "a"', "bad JSON (Expecting ',' delimiter) at column 13"),
    (b'{"text": "a}', "bad JSON (Unterminated string starting at) at column 10"),
    (b'{"text": "a"} {"text": "b"}', "more than one JSON value on the line at column 15"),
    (b'["a"]', "an array (expected an object)"),
    (b"3", "a single value (expected an object)"),
    (b'{"text": "a", "text": "b"}', 'the key "text" is given twice'),
    (b'{"text": "a", "x": NaN}', "NaN is not JSON"),
    (b'{"text": "caf\xe9"}', "byte 0xE9 at offset {offset+13} is not UTF-8 (looks like latin-1)"),
    (b'{"text": "\x93hi\x94"}', "byte 0x93 at offset {offset+10} is not UTF-8 (looks like cp1252)"),
    (b'{"text": null}', 'field "text" is null (expected a string)'),
    (b'{"txt": "a"}', 'field "text" is missing (expected a string)'),
    (b'{"text": 5}', 'field "text" is a number (expected a string)'),
    (b'{"text": ["a"]}', 'field "text" is an array (expected a string)'),
    (b'{"text": "a\\u0000b"}', 'field "text" holds a NUL character'),
    (b'{"text": "a\\ud800b"}', 'field "text" holds a lone surrogate, which is no character'),
    (b'{"text": "a\x01b"}', "bad JSON (Invalid control character at) at column 12"),
    (b"[" * 100_000, "nested too deeply"),
]


@pytest.mark.parametrize(("line", "reason"), BORNE)
def test_one_bad_row_is_set_aside_with_its_line_and_the_rest_goes_on(tmp_path: Path, line: bytes, reason: str) -> None:
    made = read(tmp_path, GOOD * 1500 + line + b"\n" + GOOD * 500)
    assert made.facts["read"] == 2001
    assert (made.facts["kept"], made.facts["quarantined"]) == (2000, 1)
    (row,) = [json.loads(entry) for entry in made.file("quarantine.jsonl").read_text().splitlines()]
    offset = 1500 * len(GOOD)
    for shift in (10, 13):
        reason = reason.replace(f"{{offset+{shift}}}", str(offset + shift))
    assert (row["file"], row["line"], row["offset"], row["reason"]) == (str(tmp_path / "x.jsonl"), 1501, offset, reason)


@pytest.mark.parametrize(
    ("when", "reason"),
    [
        ("May 2016", "'May 2016'"),
        ("2016-02-30", "'2016-02-30'"),
        (None, "null"),
        (2016.5, "a number"),
        ("2016-05-01T00:00Z", "'2016-05-01T00:00Z'"),
    ],
)
def test_a_date_that_is_none_is_set_aside(tmp_path: Path, when: Any, reason: str) -> None:
    good = b'{"text": "a", "t": "2016-05"}\n'
    made = read(tmp_path, good + json.dumps({"text": "b", "t": when}).encode(), time="t", **BEAR)
    (row,) = [json.loads(entry) for entry in made.file("quarantine.jsonl").read_text().splitlines()]
    zone = "; with a time of day or a zone it may be another day elsewhere" if "Z" in reason else ""
    assert row["reason"] == f'field "t" is {reason} (expected a date: 2016-05-01, 2016-05 or 2016{zone})'


def test_too_many_bad_rows_stop_the_run_and_the_first_are_named(tmp_path: Path) -> None:
    data = GOOD + b"{\n" * 0 + b'{"text": "a"\n' + b'{"text": null}\n' + GOOD + b"[]\n" + b"7\n"
    assert refused(tmp_path, data) == (
        "4 of 6 rows cannot be read\n"
        "  where:    DIR/x.jsonl:2\n"
        "  expected: at most 0.1 % of the rows, and at most 100\n"
        "  found:    DIR/x.jsonl:2 bad JSON (Expecting ',' delimiter) at column 13\n"
        '            DIR/x.jsonl:3 field "text" is null (expected a string)\n'
        "            DIR/x.jsonl:5 an array (expected an object)\n"
        "            and 1 more\n"
        "  do:       correct the rows, or bear more: corpora.code.bad_rows: {share: 0.67, most: 4}"
    )


def test_a_whole_file_in_another_encoding_names_the_key(tmp_path: Path) -> None:
    assert refused(tmp_path, '{"text": "café"}\n'.encode("latin-1") * 5000) == (
        "101 of 101 rows cannot be read\n"
        "  where:    DIR/x.jsonl:1\n"
        "  expected: at most 0.1 % of the rows, and at most 100\n"
        "  found:    DIR/x.jsonl:1 byte 0xE9 at offset 13 is not UTF-8 (looks like latin-1)\n"
        "            DIR/x.jsonl:2 byte 0xE9 at offset 30 is not UTF-8 (looks like latin-1)\n"
        "            DIR/x.jsonl:3 byte 0xE9 at offset 47 is not UTF-8 (looks like latin-1)\n"
        "            and 98 more\n"
        "  do:       set corpora.code.encoding: latin-1, or correct the rows"
    )
    made = read(tmp_path, '{"text": "café"}\n'.encode("latin-1") * 50, encoding="latin-1")
    assert made.facts["kept"] == 50


@pytest.mark.parametrize(
    ("data", "name", "recipe", "message"),
    [
        (
            b"",
            "x.jsonl",
            {},
            "0 rows\n  where:    DIR/x.jsonl\n  found:    an empty file\n  do:       take it out of corpora.code.path",
        ),
        (
            b" \n\n\t\n",
            "x.jsonl",
            {},
            "0 rows\n  where:    DIR/x.jsonl\n  found:    no row in the file\n  do:       take it out of corpora.code.path",
        ),
        (
            b"id,text\n",
            "x.csv",
            {},
            "0 rows\n  where:    DIR/x.csv\n  found:    no row in the file\n  do:       take it out of corpora.code.path",
        ),
        (
            b'{"content": "a", "id": 1}\n' * 5,
            "x.jsonl",
            {},
            '0 of 5 rows have "text"\n  where:    corpora.code.text\n  expected: one of the columns there are: content, id\n'
            "  found:    text\n  do:       correct corpora.code.text",
        ),
        (
            b'{"content": "a", "id": 1}\n' * 5,
            "x.jsonl",
            {"text": "{content}", "time": "date"},
            '0 of 5 rows have "date"\n  where:    corpora.code.time\n  expected: one of the columns there are: content, id\n'
            "  found:    date\n  do:       correct corpora.code.time",
        ),
        (
            b"content,id\na,1\n",
            "x.csv",
            {"prompt": "{content}: {question}", "response": "answer"},
            '0 of 1 rows have "question"\n  where:    corpora.code.prompt\n'
            "  expected: one of the columns there are: content, id\n  found:    question\n"
            "  do:       correct corpora.code.prompt",
        ),
        (
            GOOD * 3,
            "x.jsonl",
            {"columns": ["domain"]},
            '0 of 3 rows have "domain"\n  where:    corpora.code.columns\n  expected: one of the columns there are: text\n'
            "  found:    domain\n  do:       correct corpora.code.columns",
        ),
        (
            GOOD * 3,
            "x.jsonl",
            {"where": {"text": "another"}},
            "0 of 3 rows are usable\n  where:    corpora.code\n  found:    3 filtered (where text)\n"
            "  do:       check corpora.code.where",
        ),
        (
            b"[]\n",
            "x.jsonl",
            {"bad_rows": {"share": 1.0}},
            "0 of 1 rows are usable\n  where:    corpora.code\n"
            "  found:    1 cannot be read, the first DIR/x.jsonl:1 an array (expected an object)\n"
            "  do:       check the data",
        ),
        (
            b'{"text": " "}\n' * 3,
            "x.jsonl",
            {},
            "0 of 3 rows are usable\n  where:    corpora.code\n  found:    3 filtered (empty)\n  do:       check the data",
        ),
        (
            GOOD * 3,
            "x.jsonl",
            {"text": "{text} {"},
            "a template that cannot be read\n  where:    corpora.code.text\n"
            "  found:    a single '{' in the template: write '{{' for the character itself",
        ),
        (
            GOOD * 3,
            "x.jsonl",
            {"columns": ["text"]},
            "'text' is the name of a document's own column\n  where:    corpora.code.columns\n"
            "  do:       take it out of the list",
        ),
        (
            b'[\n{"text": "a"},\n{"text": "b"}\n]\n',
            "x.json",
            {},
            "JSON over many lines\n  where:    DIR/x.json:1\n  expected: one JSON object on each line\n"
            "  found:    an array\n"
            "  do:       convert it, for example with: jq -c '.[]' FILE > FILE.jsonl",
        ),
        (
            b'id,text\n1,a\n2,"b\n3,c\n4,d\n',
            "x.csv",
            {},
            "a quoted field that never ends\n  where:    DIR/x.csv:3\n  found:    3 lines without its closing quote\n"
            "  do:       correct this row",
        ),
        (
            b"id,id\n1,a\n",
            "x.csv",
            {},
            "the header cannot be read\n  where:    DIR/x.csv:1\n  found:    the column 'id' twice\n  do:       correct it",
        ),
        (
            '{"text": "a"}\n'.encode("utf-16"),
            "x.jsonl",
            {},
            "the file is not in the encoding that was declared\n  where:    DIR/x.jsonl\n  expected: utf-8\n"
            "  found:    UTF-16, by its first bytes\n  do:       set corpora.code.encoding: utf-16",
        ),
        (
            GOOD,
            "x.jsonl",
            {"encoding": "klingon"},
            "no such encoding\n  where:    corpora.code.encoding\n  expected: utf-8, latin-1, cp1252, utf-16, ...\n"
            "  found:    klingon",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "x.parquet",
            {"format": "jsonl"},
            "a Git LFS pointer, not the data\n  where:    DIR/x.parquet\n  do:       run: git lfs pull",
        ),
        (
            b'{"text": "a", "t": "2016"}\n{"text": "b", "t": 2017}\n',
            "x.jsonl",
            {"time": "t"},
            "a time column of mixed types\n  where:    DIR/x.jsonl:2 (corpora.code.time)\n"
            "  expected: a string, as in DIR/x.jsonl:1\n  found:    a number\n  do:       write all dates in one way",
        ),
    ],
)
def test_a_request_that_cannot_be_met(tmp_path: Path, data: bytes, name: str, recipe: dict, message: str) -> None:
    assert refused(tmp_path, data, name, **recipe) == message


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_a_cut_off_file_says_how_far_it_was_read_and_is_not_used(tmp_path: Path, pack: Any) -> None:
    rows = b"".join(b'{"text": "%s"}\n' % os.urandom(500).hex().encode() for _ in range(1000))
    message = refused(tmp_path, pack(rows)[:-100_000], "x.jsonl.gz")
    found = message.splitlines()[2]
    assert message.replace(found, "FOUND") == (
        "a damaged or incomplete file\n  where:    DIR/x.jsonl.gz\nFOUND\n  kept:     nothing of it was used\n"
        "  do:       fetch the file again"
    )
    assert 0 < int(found.split(" after ")[1].removesuffix(" rows")) < 1000


def test_a_parquet_file_without_its_end(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"] * 1000}), tmp_path / "whole.parquet")
    data = (tmp_path / "whole.parquet").read_bytes()[:-9]
    message = refused(tmp_path, data, "x.parquet")
    assert message.startswith(
        "not a whole Parquet file\n  where:    DIR/x.parquet\n  found:    Parquet magic bytes not found"
    )


def test_a_file_that_changes_while_it_is_read_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from coterie.corpora.row_plan import Plan

    def meddle(self: Plan, row: Any, document=Plan.document) -> Any:
        with (tmp_path / "x.jsonl").open("ab") as file:
            file.write(GOOD)
        monkeypatch.undo()
        return document(self, row)

    monkeypatch.setattr(Plan, "document", meddle)
    assert refused(tmp_path, GOOD * 3) == (
        "the file changed while it was read\n  where:    DIR/x.jsonl\n  do:       run the same command again"
    )
    assert read(tmp_path, GOOD * 4).facts["read"] == 4


def test_data_edited_under_the_same_name_size_and_time_is_other_data(tmp_path: Path) -> None:
    one = read(tmp_path, GOOD * 3)
    status = (tmp_path / "x.jsonl").stat()
    (tmp_path / "x.jsonl").write_bytes(GOOD * 2 + GOOD.replace(b"good", b"evil"))
    os.utime(tmp_path / "x.jsonl", ns=(status.st_atime_ns, status.st_mtime_ns))
    corpus = Corpus(path=str(tmp_path / "x.jsonl"))
    assert read_corpus(Store(tmp_path / "store"), corpus, label="code").digest != one.digest


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("the superuser may read everything")
    (tmp_path / "x.jsonl").write_bytes(GOOD)
    (tmp_path / "x.jsonl").chmod(0)
    with pytest.raises(RequestError, match="Permission denied"):
        read_corpus(Store(tmp_path / "store"), Corpus(path=str(tmp_path / "x.jsonl")), label="code")


def test_a_hub_dataset_without_a_network_says_which_path_to_set(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        read_corpus(Store(tmp_path), Corpus(hub="truthfulqa/truthful_qa", config="generation"), label="truthfulqa")
    assert str(caught.value) == (
        "the dataset 'truthfulqa/truthful_qa' cannot be fetched\n"
        "  where:    corpora.truthfulqa\n"
        "  found:    ConnectionError: Couldn't reach 'truthfulqa/truthful_qa' on the Hub (OfflineModeIsEnabled)\n"
        "  do:       without a network, set corpora.truthfulqa.path to a copy "
        "(--set corpora.truthfulqa.path=FILE-or-FOLDER)"
    )


def test_no_message_holds_a_rows_text(tmp_path: Path) -> None:
    secret = "swordfish"
    lines = [
        b'{"text": "%s"',
        b'{"text": "%s"} "%s"',
        b'{"text": ["%s"]}',
        b'{"text": "%s\xe9"}',
        b'{"text": {"%s": 1, "x": 2}}',
    ]
    data = b"\n".join(line.replace(b"%s", secret.encode()) for line in lines)
    assert secret not in refused(tmp_path, data)
