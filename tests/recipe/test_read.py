"""A recipe as people write it: short forms, overrides, and errors that say where."""

from __future__ import annotations

from datetime import date
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import RequestError
from coterie.recipe import Recipe, read
from coterie.recipe.lineage import lineage

DESIGN = """\
name: two-domains
seed: 0
base:                                       # or {path: DIR-or-hub-id}
  {init: llama, hidden_size: 128, layers: 4, heads: 4, tokenizer: {train: bpe, vocab_size: 2048}, \
pretrain: {corpora: [meetings, code], tokens: 2_000_000}}
corpora:
  meetings: {path: data/qmsum_compact.jsonl, prompt: query, response: answer, id: id}
  code:     {path: data/mbpp.jsonl, text: "{text}\\n{code}", id: task_id}
  dated:    {path: data/dated.jsonl, text: text, time: date, id: id}
experts:
  - {name: meetings, corpus: meetings, kind: full, train: {tokens: 2_000_000}}
  - {name: code,     corpus: code,     kind: full, train: {tokens: 2_000_000}}
  - {name: "y{start}", corpus: dated, windows: {start: 2013-01-01, end: 2025-01-01, every: 2y}, kind: full, \
from: previous, train: {tokens: 2_000_000, schedule: wsd}}
mixtures:
  - {name: average,  at: outputs, slots: [meetings, code, code], router: uniform}
  - {name: learned,  at: outputs, slots: ["y*"], eligible: strict, router: {kind: linear}}
evaluation:
  - {name: losses, corpora: [meetings, code]}
  - {name: releases, choices: data/release_qa.jsonl, time: date}
"""
"""The recipe of the design document, as printed."""

SMALL = {
    "name": "small",
    "corpora": {"a": {"path": "a.jsonl", "text": "text"}, "b": {"path": "b.jsonl", "text": "text"}},
    "experts": [{"name": "a", "corpus": "a"}, {"name": "b", "corpus": "b"}],
    "mixtures": [{"name": "m", "at": "outputs", "slots": ["a", "b"]}],
}


@pytest.fixture
def design(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(DESIGN)
    return path


def test_the_designs_recipe_reads_as_printed(design: Path) -> None:
    recipe = read(design)
    names = [e.name for e in recipe.experts]
    assert names == ["meetings", "code", "y2013", "y2015", "y2017", "y2019", "y2021", "y2023"]
    assert [e.from_ for e in recipe.experts[2:]] == ["fresh", "y2013", "y2015", "y2017", "y2019", "y2021"]
    assert recipe.experts[2].window is not None
    assert (recipe.experts[2].window.start, recipe.experts[2].window.end) == (date(2013, 1, 1), date(2015, 1, 1))
    assert recipe.mixtures[0].slots == ("meetings", "code", "code")
    assert recipe.mixtures[1].slots == tuple(names[2:])
    assert recipe.corpora["code"].path == str(design.parent / "data/mbpp.jsonl")


def test_the_flat_form_is_short_for_slots_over_distinct_experts(tmp_path: Path) -> None:
    path = tmp_path / "thirty.json"
    path.write_text(
        '{"datasets": ["truthfulqa", "truthfulqa", "qmsum"], "paths": {"qmsum": "q.jsonl"}, "train": {"tokens": 9}}'
    )
    recipe = read(path)
    assert recipe.name == "thirty"
    assert [e.name for e in recipe.experts] == ["truthfulqa", "qmsum"]
    assert all(e.train.tokens == 9 for e in recipe.experts)
    assert recipe.mixtures[0].slots == ("truthfulqa", "truthfulqa", "qmsum")
    assert recipe.corpora["qmsum"].path == str(tmp_path / "q.jsonl")
    assert recipe.corpora["qmsum"].split.group == "meeting_id"
    assert recipe.corpora["truthfulqa"].hub is not None


def test_slots_by_count_equal_slots_by_repeat() -> None:
    by_count = read({**SMALL, "mixtures": [{"name": "m", "at": "outputs", "slots": {"a": 3, "b": 1}}]})
    by_repeat = read({**SMALL, "mixtures": [{"name": "m", "at": "outputs", "slots": ["a", "a", "a", "b"]}]})
    assert by_count == by_repeat


def test_defaults_for_all_yield_to_an_experts_own() -> None:
    raw = {**SMALL, "train": {"tokens": 100, "learning_rate": 0.5}}
    raw["experts"] = [{"name": "a", "corpus": "a", "train": {"epochs": 2}}, {"name": "b", "corpus": "b"}]
    a, b = read(raw).experts
    assert (a.train.tokens, a.train.epochs, a.train.learning_rate) == (None, 2, 0.5)
    assert (b.train.tokens, b.train.epochs, b.train.learning_rate) == (100, None, 0.5)


def test_yaml_numbers_that_pyyaml_reads_as_text(design: Path) -> None:
    assert read(design, ["experts.code.train.learning_rate=1e-4"]).experts[1].train.learning_rate == 1e-4


def test_the_hash_follows_the_meaning_not_the_spelling(design: Path) -> None:
    before = read(design).hash
    assert read(design).hash == before
    assert read(design, ["seed=0"]).hash == before
    assert read(design, ["seed=1"]).hash != before
    assert read(design, ["experts.0.train.tokens=2000001"]).hash != before


@pytest.mark.parametrize(
    ("settings", "what", "where"),
    [
        (["experts.0.tain={}"], "unknown key", "--set experts.0.tain"),
        (["base.layerz=3"], "unknown key", "(base.layerz)"),
        (["mixtures.learned.router.topk=2"], "unknown key", "(mixtures.1.router.topk)"),
        (["experts.0.train.tokens=abc"], "wrong value", "(experts.0.train.tokens)"),
        (["experts.0.train.learning_rate=.inf"], "wrong value", "(experts.0.train.learning_rate)"),
        (["experts.0.train.learning_rate=.nan"], "wrong value", "(experts.0.train.learning_rate)"),
        (["experts.0.train.batch_size=true"], "wrong value", "(experts.0.train.batch_size)"),
        (["experts.0.name=12"], "wrong value", "(experts.0.name)"),
        (["experts.0.name='12'"], "wrong value", "(experts.0.name)"),
        (["experts.0.name=single"], "wrong value", ""),
        (["experts.0.name=../x"], "wrong value", "(experts.0.name)"),
        (["experts.0.corpus=cod"], "no corpus is called 'cod'", "(experts.0.corpus)"),
        (["experts.0.from=nobody"], "no expert is called 'nobody'", "(experts.0.from)"),
        (["mixtures.0.slots=[cod]"], "no expert is called 'cod'", "(mixtures.0.slots)"),
        (["mixtures.0.slots=['z*']"], "matches no expert", "(mixtures.0.slots)"),
        (["mixtures.0.slots=[]"], "wrong value", "(mixtures.0)"),
        (["mixtures.0.router={kind: uniform, top_k: 3}"], "top_k is above", "(mixtures.0.router.top_k)"),
        (["mixtures.learned.slots=[code]"], "strict needs to know", "(mixtures.1.eligible)"),
        (["mixtures.0.eligible=inclusive"], "inclusive goes by windows", "(mixtures.0.slots)"),
        (["mixtures.0.at=nowhere"], "no place where experts meet is called 'nowhere'", "(mixtures.0.at)"),
        (["evaluation.0.corpora=[nope]"], "no corpus is called 'nope'", "(evaluation.0.corpora)"),
        (["corpora.dated.time=null"], "windows need dates", "(experts.2.windows)"),
        (["experts.2.windows.end=2012-01-01"], "end before they start", "(experts.2.windows)"),
        (["experts.2.windows.every=2w"], "wrong value", "(experts.2.windows"),
        (
            ["experts.2.windows=[{start: 2013-01-01, end: 2015-01-01}, {start: 2014-01-01, end: 2016-01-01}]"],
            "windows overlap",
            "(experts.2.windows)",
        ),
        (
            ["experts.2.windows=[{start: 2013-01-01, end: 2015-01-01}, {start: 2016-01-01, end: 2017-01-01}]"],
            "leave a gap",
            "(experts.2.windows)",
        ),
        (["experts.2.windows=[{start: 2013-01-01, end: 2013-01-01}]"], "is empty", "(experts.2.windows"),
        (["experts.2.allow=[gap]"], "allow is ignored without a list", "(experts.2)"),
        (["corpora.code.undated=later"], "ignored without time", "(corpora.code)"),
        (["corpora.dated.time_pattern='CC-MAIN'"], "needs a group", "(corpora.dated)"),
        (["corpora.dated.time_pattern='('"], "time_pattern", "(corpora.dated)"),
        (["mixtures.0.default_time=2016-01-01"], "ignored where no expert has a window", "(mixtures.0.eligible)"),
        (["experts.0.lora={r: 4}"], "wrong value", "(experts.0)"),
        (["experts.0.train.epochs=1"], "wrong value", "(experts.0.train)"),
        (["corpora.code.prompt=x"], "wrong value", "(corpora.code)"),
        (["corpora.code.path=null"], "says neither path nor hub", "(corpora.code)"),
        (["base.heads=3"], "wrong value", "(base)"),
        (["base.heads=128"], "need an even number", "(base)"),
        (["base.context=64"], "below sequence_length", "recipe.yaml"),
        (["base.pretrain.corpora=[nope]"], "no corpus is called 'nope'", "(base)"),
        (["seed"], "--set takes KEY=VALUE", "--set seed"),
        (["corpora.code.text={text}"], "the value is a YAML mapping without values", "--set corpora.code.text={text}"),
        (["corpora.code.text={text}"], """--set 'corpora.code.text="{text}"'""", "--set corpora.code.text={text}"),
        (["corpora.code.text={text}: {code}"], "needs quotes of YAML's own", "--set corpora.code.text={text}: {code}"),
        (["experts.9.seed=1"], "no such list item", "--set experts.9.seed=1"),
        (["name.a=1"], "goes through a plain value", "--set name.a=1"),
    ],
)
def test_a_wrong_request_says_what_and_where(design: Path, settings: list[str], what: str, where: str) -> None:
    with pytest.raises(RequestError) as caught:
        read(design, settings)
    assert what in str(caught.value)
    assert where.strip("()") in (caught.value.where or "")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "settings", "where"),
    [
        ("tain: {}", [], "recipe.yaml:4 (experts.0.tain)"),
        ("train: {tokens: abc}", [], "recipe.yaml:4 (experts.0.train.tokens)"),
        (
            "train: {tokens: abc}",
            ["experts.code.train.tokens=-1"],
            "--set experts.code.train.tokens (experts.0.train.tokens)",
        ),
        (
            "train: {tokens: 5}",
            ["experts.code.train={tokens: 5, steps: 1}"],
            "--set experts.code.train (experts.0.train.steps)",
        ),
        ("train: {tokens: abc}", ["experts.0.train.batch_size=1"], "recipe.yaml:4 (experts.0.train.tokens)"),
        ("seed: 1", ["experts.0.lora.r=-1"], "--set experts.0.lora.r"),
        ("seed: 1", ["train.tokens=-1"], "--set train.tokens"),
        ("seed: 1", ["base={layers: 0}"], "--set base (base.layers)"),
    ],
)
def test_a_place_is_named_where_it_was_written(tmp_path: Path, text: str, settings: list[str], where: str) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "base: {init: llama, hidden_size: 16, layers: 1, heads: 2}\n"
        "corpora: {code: {path: code.jsonl, text: text}}\n"
        f"experts:\n  - {{name: code, corpus: code, {text}}}\n"
    )
    with pytest.raises(RequestError) as caught:
        read(tmp_path / "recipe.yaml", settings)
    assert (caught.value.where or "").removeprefix(f"{tmp_path}/") == where


def test_what_is_said_once_for_all_experts_is_named_there(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "base: {init: llama, hidden_size: 16, layers: 1, heads: 2}\ntrain:\n  tokens: abc\n"
        "corpora: {code: {path: code.jsonl, text: text}}\nexperts:\n  - {name: code, corpus: code}\n"
    )
    with pytest.raises(RequestError) as caught:
        read(tmp_path / "recipe.yaml")
    assert (caught.value.where or "").endswith("recipe.yaml:3 (train.tokens)")


def test_a_folder_is_no_recipe_and_names_those_in_it(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="a recipe is a file") as caught:
        read(tmp_path)
    assert caught.value.found == "no recipe in it"
    (tmp_path / "a.yaml").write_text("name: a\ncorpora: {}\n")
    (tmp_path / "b.json").write_text('{"datasets": ["mbpp"]}')
    (tmp_path / "c.yaml").write_text("other: 1\n")
    with pytest.raises(RequestError) as caught:
        read(tmp_path)
    assert caught.value.found == f"recipes in it: {tmp_path}/a.yaml, {tmp_path}/b.json"
    assert f"{tmp_path}/a.yaml" in (caught.value.do or "")


def test_an_unknown_key_is_answered_with_the_known_ones(design: Path) -> None:
    with pytest.raises(RequestError, match="learning_rate"):
        read(design, ["experts.0.train.learningrate=1"])


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "empty"),
        ("- a\n- b\n", "mapping"),
        ("name: [\n", "not valid YAML"),
        ("name: a\nname: b\n", "given twice"),
        ("seed: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("name: x\ncorpora: {}\n", "missing key"),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=what) as caught:
        read(path)
    assert "r.yaml" in str(caught.value.where)


def test_a_missing_file_and_wrong_encoding(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no such recipe"):
        read(tmp_path / "none.yaml")
    (tmp_path / "l.yaml").write_bytes("name: caf\u00e9".encode("latin-1"))
    with pytest.raises(RequestError, match="cannot be read"):
        read(tmp_path / "l.yaml")


def test_experts_do_not_branch_in_a_circle() -> None:
    raw = {**SMALL, "experts": [{"name": "a", "corpus": "a", "from": "b"}, {"name": "b", "corpus": "b", "from": "a"}]}
    with pytest.raises(RequestError, match="circle"):
        read(raw)


def test_no_expert_branches_from_an_adapter() -> None:
    raw = {**SMALL, "experts": [{"name": "a", "corpus": "a", "kind": "lora"}, {"name": "b", "corpus": "b", "from": "a"}]}
    with pytest.raises(RequestError, match="adapter"):
        read(raw)


@given(st.integers(1, 400), st.sampled_from("ymd"), st.dates(date(1990, 1, 1), date(2030, 1, 1)), st.integers(1, 3000))
def test_windows_tile_their_span(count: int, unit: str, start: date, days: int) -> None:
    from datetime import timedelta

    end = start + timedelta(days=days)
    if unit == "d" and days / count > 200:
        return
    raw = {
        **SMALL,
        "corpora": {"a": {"path": "a", "text": "t", "time": "d"}},
        "experts": [
            {"name": "w{start}-{end}", "corpus": "a", "windows": {"start": start, "end": end, "every": f"{count}{unit}"}}
        ],
        "mixtures": [],
    }
    windows = [e.window for e in read(raw).experts]
    assert windows[0].start == start  # type: ignore[union-attr]
    assert windows[-1].end == end  # type: ignore[union-attr]
    for a, b in pairwise(windows):
        assert a.end == b.start  # type: ignore[union-attr]


def test_knowledge_goes_by_all_that_stands_behind(design: Path) -> None:
    recipe = read(design)
    assert lineage(recipe, recipe.experts, "y2017").dates == [date(2019, 1, 1), date(2017, 1, 1), date(2015, 1, 1)]
    assert lineage(recipe, recipe.experts, "code").unknown
    stated = read(design, ["base.knowledge_until=2019-06-01", "experts.2.from=base"])
    assert date(2019, 6, 1) in lineage(stated, stated.experts, "y2013").dates


def test_every_field_says_what_it_means() -> None:
    from coterie.recipe.reference import sections

    for section in sections():
        assert section.sentence, section.title
        for name, _, _, meaning in section.fields:
            assert meaning, f"{section.title}: {name} has no docstring"


def test_recipes_are_frozen() -> None:
    recipe = read(SMALL)
    assert isinstance(recipe, Recipe)
    with pytest.raises(Exception, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]


def test_windows_may_overlap_or_leave_gaps_where_it_is_said(design: Path) -> None:
    gap = "experts.2.windows=[{start: 2013-01-01, end: 2015-01-01}, {start: 2016-01-01, end: 2017-01-01}]"
    names = [e.name for e in read(design, [gap, "experts.2.allow=[gap]"]).experts]
    assert names[2:] == ["y2013", "y2016"]
    overlap = "experts.2.windows=[{start: 2013-01-01, end: 2015-01-01}, {start: 2014-01-01, end: 2016-01-01}]"
    assert len(read(design, [overlap, "experts.2.allow=[overlap]"]).experts) == 4


def test_strict_is_the_rule_where_experts_have_windows(design: Path) -> None:
    plain = read(design, ["mixtures.1={name: learned, at: outputs, slots: ['y*']}"])
    assert [m.eligible for m in plain.mixtures] == ["all", "strict"]
    said = read(design, ["mixtures.1={name: learned, at: outputs, slots: ['y*'], eligible: all}"])
    assert said.mixtures[1].eligible == "all"


def test_undated_documents_bound_nothing_and_so_forbid_strict(design: Path) -> None:
    whole = ["experts.0={name: whole, corpus: dated}", "mixtures.0={name: average, at: outputs, slots: [whole]}"]
    strict = ["mixtures.0={name: average, at: outputs, slots: [whole], eligible: strict}"]
    assert read(design, [*whole, *strict, "base.pretrain=null"]).mixtures[0].eligible == "strict"
    with pytest.raises(RequestError, match="strict needs to know") as caught:
        read(design, [*whole, *strict, "base.pretrain=null", "corpora.dated.undated=rest"])
    assert "without a date" in str(caught.value)
