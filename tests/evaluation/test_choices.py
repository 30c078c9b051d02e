"""Against one forward pass per option on tiny random models; rates, ties, dates, files that are wrong."""

from __future__ import annotations

import json
import os
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.mixtures import built
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from coterie.errors import RequestError, WorkError
from coterie.evaluation.choices import Asked, _mark, evaluate_choices, score_options
from coterie.evaluation.compare import tables
from coterie.evaluation.metrics import Choices
from coterie.evaluation.questions import Question, read_questions
from coterie.mixtures.load import load
from coterie.mixtures.outputs.outputs_place import materialise
from coterie.store import Store

TEXT = [
    "As of July 2015, what was the latest stable release of Rust? 1.1 1.10 1.5",
    "the quick brown fox",
    "Which one? This one",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        TEXT * 20, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["<s>"])
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="<s>")


def tiny(kind: str, seed: int = 0, context: int = 64) -> torch.nn.Module:
    torch.manual_seed(seed)
    if kind == "llama":
        config = LlamaConfig(
            vocab_size=330,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=context,
            initializer_range=0.3,
        )
        return LlamaForCausalLM(config).double().eval()
    config = GPT2Config(vocab_size=330, n_embd=32, n_layer=2, n_head=2, n_positions=context, initializer_range=0.3)
    return GPT2LMHeadModel(config).double().eval()


def question(prompt: str, *options: str, label: int = 0, kinds: tuple | None = None, time: date | None = None) -> Question:
    return Question(prompt, options, label, kinds, time, None)


QUESTIONS = [
    question("As of July 2015, what was the latest stable release of Rust? ", "1.1", "1.10", "1.5", "the latest"),
    question("Which one?", " This one", "?", " brown fox jumps"),
    question("", "fox", "the quick brown"),
    question("the quick bro", "wn fox", "x"),  # `wn` may merge with what stands before it
]


def by_hand(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, q: Question, option: str) -> tuple[float, int]:
    """One forward pass, no batch, no padding, over the tokens as they are read."""
    prompt = q.prompt.rstrip()
    space = q.prompt[len(prompt) :]
    before = tokenizer(prompt)["input_ids"] if prompt else []
    whole = tokenizer(prompt + space + option)["input_ids"]
    after = whole[len(before) :] if whole[: len(before)] == before else tokenizer(space + option)["input_ids"]
    ids = torch.tensor([[0, *before, *after]])
    with torch.no_grad():
        logp = model(ids).logits.log_softmax(-1)[0]
    first = 1 + len(before)
    return sum(float(logp[t - 1, ids[0, t]]) for t in range(first, ids.shape[1])), len(after)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_as_one_pass_for_each_option(kind: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny(kind)
    expected = [[by_hand(model, tokenizer, q, o) for o in q.options] for q in QUESTIONS]
    for batch_size in (1, 3, 16):
        found = score_options(model, tokenizer, QUESTIONS, batch_size=batch_size)
        for mine, theirs in zip(found, expected, strict=True):
            for (nats, tokens), (nats_, tokens_) in zip(mine, theirs, strict=True):
                assert tokens == tokens_
                assert nats == pytest.approx(nats_, abs=1e-5)  # log-probabilities are given in fp32


def test_a_prompt_that_does_not_fit_loses_its_beginning(tokenizer: PreTrainedTokenizerFast) -> None:
    long = question("brown fox " * 200 + "Which one?", " This one", " the quick brown fox")
    model = tiny("gpt2", context=32)
    for option, (nats, tokens) in zip(long.options, score_options(model, tokenizer, [long])[0], strict=True):
        after = tokenizer(option)["input_ids"]
        before = tokenizer(long.prompt)["input_ids"][-(31 - len(after)) :]
        with torch.no_grad():
            logp = model(torch.tensor([[0, *before, *after]])).logits.log_softmax(-1)[0, -len(after) - 1 : -1]
        assert tokens == len(after)
        assert nats == pytest.approx(float(logp.gather(1, torch.tensor(after)[:, None]).sum()), abs=1e-5)
    with pytest.raises(RequestError, match="longer than the model's context"):
        score_options(model, tokenizer, [question("a", "brown fox " * 100, "b")])


def test_what_is_not_finite_is_never_published(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny("llama")
    model.model.norm.weight.data[:] = float("nan")
    with pytest.raises(WorkError, match="not finite"):
        score_options(model, tokenizer, QUESTIONS)


def test_ties_share_the_pick_and_length_does_not_decide() -> None:
    kinds = ("correct", "past", "future")
    items = [question("", "a", "b", "c", kinds=kinds), question("", "a", "b"), question("", "a", "b")]
    marks = _mark(items, [[(-2.0, 1), (-4.0, 2), (-9.0, 3)], [(-6.0, 4), (-2.0, 1)], None])
    assert marks["answered"].tolist() == [True, True, False]
    assert marks["correct"].tolist() == [0.5, 1.0, 0.0]
    assert marks["past"].tolist() == [0.5, 0.0, 0.0]


@torch.no_grad()
def test_a_mixture_answers_only_where_an_expert_may(tmp_path: Path, store: Store, tiny_tokenizer: Path) -> None:
    """Two experts whose knowledge ends with 2014 and with 2015: nobody, the first alone, both."""
    seated = built.members(store, tiny_tokenizer)
    made = built.whole(store, tiny_tokenizer, built.recipe(seated, eligible="strict"), seated)
    mixture = load(materialise(made, seated, tmp_path / "mixture"))
    days = [date(year, 6, 1) for year in (2014, 2015, 2016)]
    asked = [question("the cat ", "sat on the mat", "x + 1", time=d) for d in days]
    found = score_options(mixture, mixture.tokenizer, asked, batch_size=3)
    first, second = (score_options(e, mixture.tokenizer, asked[:1])[0] for e in mixture.experts)
    assert found[0] is None
    assert np.allclose(found[1], first, atol=1e-5)
    assert not np.allclose(found[2], first, atol=0.1)
    assert not np.allclose(found[2], second, atol=0.1)
    for option, (nats, tokens) in zip(asked[2].options, found[2], strict=True):
        ids = torch.tensor([[0, *mixture.tokenizer("the cat " + option)["input_ids"]]])
        logp = torch.stack([e(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None]) for e in mixture.experts])
        assert nats == pytest.approx(float((logp.logsumexp(0) - np.log(2))[-tokens:].sum()), abs=1e-4)


# whole evaluations --------------------------------------------------------------------------------------------------------


def rows(count: int = 24) -> list[dict]:
    rng = np.random.default_rng(0)
    out = []
    for i in range(count):
        kinds = list(rng.permutation(["correct", "past", "future", "irrelevant"]))
        options = [f"{w} {i}" for w in rng.choice(["fox", "quick", "Rust", "one", "1.1"], 4, replace=False)]
        row = {
            "question": f"Which one as of {i}?",
            "options": options,
            "label": kinds.index("correct"),
            "option_kinds": kinds,
        }
        out.append({**row, "date": f"20{10 + i % 4}-05", "project": "ab"[i % 2]})
    return out


def write(path: Path, rows: list) -> Choices:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return Choices(name="quiz", choices=str(path), time="date", by="project", bootstrap=100)


def test_evaluation_by_group_with_references(tmp_path: Path, store: Store, tokenizer: PreTrainedTokenizerFast) -> None:
    spec = write(tmp_path / "q.jsonl", rows())
    questions = read_questions(spec)
    experts = {n: tiny("llama", seed) for seed, n in enumerate(["x", "y", "z"])}
    opened: list[str] = []

    def asked(name: str) -> Asked:
        return Asked(f"digest of {name}", lambda: (opened.append(name), (experts[name], tokenizer))[1])

    models = {n: asked(n) for n in experts}
    evaluate = {
        "by": spec.by,
        "resamples": spec.bootstrap,
        "questions": questions,
        "experts": ["x", "y"],
        "against": ["z"],
        "seed": 0,
        "label": "quiz",
    }
    found = tables(evaluate_choices(store, models=models, **evaluate), list(models), key="accuracy")
    table = found["evaluation"]
    assert list(table["x"]) == ["a", "b", "all"]
    for name, model in experts.items():
        scores = score_options(model, tokenizer, questions.items)
        picks = [int(np.argmax([n / t for n, t in s])) for s in scores]
        for group in ("a", "b", "all"):
            part = [(q, p) for q, p in zip(questions.items, picks, strict=True) if group in ("all", q.group)]
            entry = table[name][group]
            assert entry["n"] == len(part)
            assert entry["skipped"] == 0
            assert entry["accuracy"] == pytest.approx(np.mean([p == q.label for q, p in part]))
            assert entry["ci95"][0] <= entry["accuracy"] <= entry["ci95"][1]
            for kind in ("past", "future", "irrelevant"):
                assert entry[kind] == pytest.approx(np.mean([q.kinds[p] == kind for q, p in part]))
    best = max(("x", "y"), key=lambda n: table[n]["all"]["accuracy"])
    assert table["best_expert"]["all"] == {**table[best]["all"], "expert": best}
    for group in ("a", "b"):
        there = table["oracle"][group]["expert"]
        assert table["oracle"][group] == {**table[there][group], "expert": there}
        assert table[there][group]["accuracy"] == max(table[n][group]["accuracy"] for n in ("x", "y"))
    assert found["differences"]["x"]["z"]["all"]["accuracy"] == pytest.approx(
        table["x"]["all"]["accuracy"] - table["z"]["all"]["accuracy"]
    )
    assert found["sources"]["data"] == {"file": questions.digest}
    assert found["sources"]["tokens"] > 100

    # another seed, another grouping: no model is asked again; one more model: it alone is asked
    evaluate_choices(store, models=models, **{**evaluate, "seed": 1, "by": None})
    assert sorted(opened) == ["x", "y", "z"]
    experts["new"] = tiny("llama", 9)
    evaluate_choices(store, models={**models, "new": asked("new")}, **evaluate)
    assert sorted(opened) == ["new", "x", "y", "z"]


def test_without_kinds_groups_or_dates(tmp_path: Path, store: Store, tokenizer: PreTrainedTokenizerFast) -> None:
    plain = [{k: r[k] for k in ("question", "options", "label")} for r in rows(4)]
    spec = write(tmp_path / "q.jsonl", plain).model_copy(update={"time": None, "by": None})
    models = {"x": Asked("x", lambda: (tiny("gpt2"), tokenizer))}
    made = evaluate_choices(
        store,
        by=spec.by,
        resamples=spec.bootstrap,
        questions=read_questions(spec),
        models=models,
        experts=[],
        seed=0,
        label="quiz",
    )
    table = tables(made, ["x"])["evaluation"]
    assert set(table) == {"x"}
    assert set(table["x"]) == {"all"}
    assert set(table["x"]["all"]) == {"accuracy", "n", "ci95", "skipped"}


@pytest.mark.parametrize(
    ("bad", "what", "says"),
    [
        ("{", "not JSON", "q.jsonl:2"),
        ("[1]", "not a JSON object", "list"),
        ({"question": None}, "is null", "question"),
        ({"options": ["one"]}, "at least two", "q.jsonl:2"),
        ({"options": ["one", " "]}, "empty", "q.jsonl:2"),
        ({"options": "ab"}, "at least two", "ab"),
        ({"label": 4}, "not the index", "0 to 3"),
        ({"label": True}, "not the index", "0 to 3"),
        ({"label": "1"}, "not the index", "'1'"),
        ({"date": "May 2016"}, "no date", "May 2016"),
        ({"date": "2016-13-01"}, "no date", "2016-05-01"),
        ({"option_kinds": ["correct", "past", "future", "odd"]}, "kinds are wrong", "irrelevant"),
        ({"option_kinds": ["past"] * 4}, "disagree", "q.jsonl:2"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: object, what: str, says: str) -> None:
    good = rows(3)
    good[1] = bad if isinstance(bad, str) else {**good[1], **bad}
    spec = write(tmp_path / "q.jsonl", good)
    with pytest.raises(RequestError, match=what) as error:
        read_questions(spec)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("change", "what", "says"),
    [
        ({"question": "query"}, "no column 'query'", "options"),
        ({"time": "when"}, "no column 'when'", "date"),
        ({"by": "topic"}, "no column 'topic'", "project"),
        ({"kinds": "sorts"}, "no column 'sorts'", "option_kinds"),
        ({"template": "{question} {context}"}, "'context'", "template"),
        ({"template": "{question"}, "template is wrong", "quiz.template"),
    ],
)
def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path, change: dict, what: str, says: str) -> None:
    spec = write(tmp_path / "q.jsonl", rows(2))
    with pytest.raises(RequestError, match=what) as error:
        read_questions(Choices(**{**spec.model_dump(), **change}))
    assert says in str(error.value)


def test_files_without_questions(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(RequestError, match="no question"):
        read_questions(Choices(name="quiz", choices=str(tmp_path / "empty.jsonl")))
    with pytest.raises(RequestError, match="cannot be read"):
        read_questions(Choices(name="quiz", choices=str(tmp_path / "none.jsonl")))
    (tmp_path / "latin.jsonl").write_bytes('{"question": "é"}'.encode("latin-1"))
    with pytest.raises(RequestError, match="not UTF-8") as error:
        read_questions(Choices(name="quiz", choices=str(tmp_path / "latin.jsonl")))
    assert "latin.jsonl:1" in str(error.value)


@pytest.mark.data
def test_release_questions_are_read() -> None:
    path = Path(os.environ.get("COTERIE_DATA", "../shared/data")) / "release_qa" / "release_qa.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    questions = read_questions(Choices(name="releases", choices=str(path), time="date", by="year"))
    assert len(questions.items) == 195
    assert questions.items[0].prompt == "As of July 2015, what was the latest stable release of Rust? "
    assert questions.items[0].kinds == ("future", "correct", "past", "future")
    assert questions.items[0].group == "2015"
