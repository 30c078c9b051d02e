"""The page holds what the summary holds, nothing from outside, and nothing of what people called their things as HTML."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.report.fixture import make_summary, write

from coterie.errors import RequestError
from coterie.report import markdown, write_report

NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>|`&lt;{{ 7*7 }}"


class Page(HTMLParser):
    """Tags that are open, ids, text, and every address."""

    void = frozenset({"meta", "input", "img", "br", "link"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.addresses += [v for k, v in attrs if k in ("src", "href", "action", "data", "poster")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data


def page_of(out: Path, summary: dict, metrics: list[dict] | None = None) -> Page:
    page = Page(write_report(write(out, summary, metrics)).read_text(encoding="utf-8"))
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    return page


def test_the_page_is_whole_and_needs_nothing(tmp_path: Path) -> None:
    summary = make_summary()
    page = page_of(tmp_path, summary)
    assert all(a.startswith("#") and a[1:] in page.ids for a in page.addresses)
    for text in ("two-domains", "3 requested, 3 distinct, 2 trained, 1 reused", "learned was not evaluated", "torch 2.13.0"):
        assert text in page.text
    for source in summary["sources"].values():
        for digest in (source["artifact"], *source["models"].values(), *source["data"].values()):
            assert digest in page.text
    assert "1 is at least half contained in the training documents (kept)" in page.text
    html = (tmp_path / "report.html").read_text()
    assert "http://" not in html.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in html
    assert not re.search(r"@import|url\(", html)
    assert not list(tmp_path.glob(".report*"))


def test_names_and_notes_are_text(tmp_path: Path) -> None:
    plain = json.dumps(make_summary(experts=3))
    renamed = plain.replace('"meetings"', json.dumps(NASTY)).replace('"learned"', json.dumps(NASTY + "m"))
    page = page_of(tmp_path, {**json.loads(renamed), "name": NASTY, "notes": [NASTY], "seed": NASTY})
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert page.text.count("<script>alert(1)</script>") > 10
    assert "49" not in re.findall(r"`&lt;(\S+)", page.text)
    text = markdown(tmp_path)
    assert "<" not in text
    for table in re.findall(r"(?m)(?:^\|.*\n)+", text):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


MINIMAL = {"schema": 1, "name": "x", "slots": {}, "experts": {}, "evaluation": {}, "routing": {}}


@pytest.mark.parametrize(
    "summary",
    [
        MINIMAL,
        {"schema": 1, "name": "x"},
        make_summary(experts=1, groups=1, mixtures=()),
        make_summary(
            mixtures=(), differences=None, routing=None, base=None, single=None, leaks=None, sources=None, notes=None
        ),
        make_summary(experts=40, groups=12, mixtures=("m" * 64, "n")),
        make_summary(evaluation={}),
        {**MINIMAL, "evaluation": {"e": {"a": {"all": {"tokens": 3, "nll": 1.0, "perplexity": 2.7}}}}},
        {
            **MINIMAL,
            "routing": {"m": {"utilization": [0.5, 0.5], "gini": 0.0, "entropy": 0.69, "confidence": 0.5}, "empty": {}},
        },
        {**MINIMAL, "experts": {"a" * 64: {"name": "a", "trained": True, "tokens": 9, "seconds": 1.0, "loss": None}}},
    ],
)
def test_parts_that_are_missing_are_left_out(tmp_path: Path, summary: dict) -> None:
    page = page_of(tmp_path, summary)
    for heading, key in (("Differences", "differences"), ("Who is used where", "routing"), ("What was trained", "experts")):
        assert (heading in page.text) == bool(summary.get(key))
    assert "None" not in page.text.replace("None was trained on", "")
    assert "nan" not in page.text.lower().split()
    assert markdown(tmp_path).startswith("# ")


def test_curves_come_from_the_log_where_the_summary_has_none(tmp_path: Path) -> None:
    summary = make_summary(base=None, single=None)
    for record in summary["experts"].values():
        del record["curve"], record["valid_curve"]
    assert "Loss while training" not in page_of(tmp_path / "without", summary).text
    key = next(iter(summary["experts"]))
    metrics = [{"expert": key, "step": i, "tokens": i * 100, "loss": 5.0 - i / 10} for i in range(1, 9)]
    metrics.append({"expert": key, "step": 8, "tokens": 800, "eval_loss": 4.25})
    page = page_of(tmp_path / "with", summary, metrics)
    assert "Loss while training" in page.text
    html = (tmp_path / "with" / "report.html").read_text()
    assert html.count('<g class="line') == 1
    assert 'data-valid="[[800.0, 4.25]]"' in html


def test_what_is_no_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no finished run"):
        write_report(tmp_path)
    for text in ("{", "[]", '{"schema": 2}'):
        (tmp_path / "summary.json").write_text(text)
        with pytest.raises(RequestError) as error:
            markdown(tmp_path)
        assert "summary.json" in str(error.value)


def test_no_torch_is_loaded() -> None:
    code = "import sys, coterie.report; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
