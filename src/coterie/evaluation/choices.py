"""Multiple choice: an option's score is its log-probability after the prompt, divided by its number of tokens.

Each model answers on its own (an artifact, so that adding a model asks one model), and the comparison is arithmetic over the
answers. White space at the end of a prompt belongs to the options: tokenizers put it at the beginning of a word, and a
prompt that ends in a lone space is one that no model has been trained on.

Letters: M models, Q questions, B rows, T positions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coterie.corpora.conversations import Renderer
from coterie.errors import RequestError, WorkError
from coterie.evaluation.compare import Entry, Figure, compare, write
from coterie.evaluation.questions import KINDS, Question, Questions
from coterie.models import device
from coterie.progress import bar
from coterie.store import Action, Artifact, Store

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Score = tuple[float, int]
"""log P of an option in nats, and its number of tokens."""
Scores = list[list[Score] | None]
"""Of the options of each question; None where the model has no expert for the date."""


@dataclass(frozen=True)
class Asked:
    """A model to be asked; opened only if it has not answered yet."""

    digest: str
    """Digest of the expert or mixture."""
    open: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]]
    """Gives the model (a causal language model, or a mixture) and its tokenizer."""
    precision: device.Precision = "fp32"
    """In which it opens."""


def evaluate_choices(
    store: Store,
    *,
    by: str | None,
    resamples: int,
    questions: Questions,
    models: Mapping[str, Asked],
    experts: Sequence[str],
    against: Sequence[str] = (),
    seed: int,
    label: str,
) -> Artifact:
    """Share of right answers of every model in every group, with the shares of the kinds of wrong ones.

    Args:
        questions: from `read_questions`.
        experts, against: as in `evaluate_losses`.

    Returns:
        artifact `evaluations`; read it with `tables`.
    """
    names = list(models)
    answers = [ask(store, questions=questions, model=m, label=f"{label}: {n} answers") for n, m in models.items()]
    action = Action(
        "evaluations",
        spec={
            "evaluation": "choices",
            "bootstrap": resamples,
            "seed": seed,
            "experts": [names.index(e) for e in experts],
            "against": [names.index(a) for a in against],
        },
        inputs={
            "questions": questions.digest,
            **{f"model.{m}": models[n].digest for m, n in enumerate(names)},
            **{f"answers.{m}": a.content("answers.json") for m, a in enumerate(answers)},
        },
        libraries=("numpy",),
    )

    def build(folder: Path) -> None:
        items = questions.items
        scored: list[Scores] = [json.loads(a.file("answers.json").read_text())["scores"] for a in answers]
        marked = [_mark(items, scores) for scores in scored]
        groups, group_Q = ["all"], np.zeros(len(items), int)
        if by is not None:
            values = [f"{by}=all" if q.group == "all" else str(q.group) for q in items]
            groups = sorted(set(values))
            group_Q = np.array([groups.index(v) for v in values])
        have_kinds = any(q.kinds for q in items)
        comparison = compare(
            np.stack([m["correct"] for m in marked]),
            np.ones(len(items), int),
            np.stack([m["answered"] for m in marked]),
            group_Q,
            len(groups),
            experts=action.spec["experts"],
            against=action.spec["against"],
            also={k: np.stack([m[k] for m in marked]) for k in KINDS[1:]} if have_kinds else {},
            lowest=False,
            resamples=resamples,
            seed=seed,
        )
        about = {
            "evaluation": "choices",
            "seed": seed,
            "bootstrap": resamples,
            "documents": len(items),
            "tokens": max(sum(tokens for options in scores for _, tokens in options or ()) for scores in scored),
            "data": [questions.digest],
            "groups": groups,
            "sources": [models[n].digest for n in names],
        }
        write(folder, about, comparison, _entry)

    return store.make(action, build, label=label)


def ask(store: Store, *, questions: Questions, model: Asked, label: str) -> Artifact:
    """One model's scores of every option: ``answers.json`` with ``scores`` (for each question a list of [nats, tokens], or
    null where the model has no expert for the date)."""
    action = Action(
        "evaluations",
        spec={"evaluation": "answers"},
        inputs={"questions": questions.asked, "model": model.digest},
        libraries=("torch", "transformers", "tokenizers"),
        numerics=device.numerics(device.pick(), model.precision),
    )

    def build(folder: Path) -> None:
        opened, tokenizer = model.open()
        scores = score_options(opened, tokenizer, questions.items, label=label)
        (folder / "answers.json").write_text(json.dumps({"scores": scores}, allow_nan=False))

    return store.make(action, build, label=label)


def score_options(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    *,
    batch_size: int = 16,
    label: str = "questions",
) -> Scores:
    """log P(option | prompt) of every option of every question, and its number of tokens.

    Args:
        model: a causal language model; a mixture, which has ``nll(ids_BT, time=)``, is asked as of each question's date.
        batch_size: rows scored at once; rows are padded on the right, where nothing looks.

    Returns:
        for each question its options' scores, or None where no expert of the mixture may be used at its date.

    Raises:
        WorkError: a log-probability is not finite.
    """
    import torch

    where = next(model.parameters()).device
    answered = [_may_answer(model, q.time) for q in questions]
    rows = [
        (q, o, *ids)
        for q, question in enumerate(questions)
        if answered[q]
        for o, ids in enumerate(_rows(model, tokenizer, question))
    ]
    rows.sort(key=lambda row: -len(row[2]))  # long ones first: what does not fit into memory fails at once
    scores: list[list[Score]] = [[(0.0, 0)] * len(q.options) for q in questions]
    with torch.no_grad(), bar(label, len(rows), "options") as progress:
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            longest = len(batch[0][2])
            ids_BT = torch.tensor([ids + [ids[-1]] * (longest - len(ids)) for _, _, ids, _ in batch], device=where)
            logp_BT = _target_logp(model, ids_BT, [questions[q].time for q, *_ in batch]).double().cpu()
            for (q, o, ids, count), logp_T in zip(batch, logp_BT, strict=True):
                scores[q][o] = (float(logp_T[len(ids) - 1 - count : len(ids) - 1].sum()), count)
                if not np.isfinite(scores[q][o][0]):
                    raise WorkError("a log-probability is not finite", where=f"question {q + 1}, option {o}", found=label)
            progress.to(start + len(batch))
    return [s if a else None for s, a in zip(scores, answered, strict=True)]


def _target_logp(model: PreTrainedModel, ids_BT: Tensor, times: list[date | None]) -> Tensor:
    if (nll := getattr(model, "nll", None)) is not None:
        return -nll(ids_BT, time=times if getattr(model, "goes_by_dates", False) else None)
    from coterie.models.logprob import target_logp

    return target_logp(model, ids_BT)


def _may_answer(model: PreTrainedModel, time: date | None) -> bool:
    """Whether a mixture has an expert for this date."""
    eligibility = getattr(model, "eligibility", None)
    return eligibility is None or bool(eligibility.mask([time and time.toordinal()], none_is_error=False).any())


def _rows(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: Question) -> Iterator[tuple[list[int], int]]:
    """For each option the ids of prompt and option, and how many of them are the option's."""
    prompt = question.prompt.rstrip()
    between = question.prompt[len(prompt) :]
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    begin = [] if first is None else [first]

    def ids_of(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    if question.chat:
        begin, prompt_ids, between = [], Renderer(tokenizer).question(prompt), ""
    else:
        prompt_ids = ids_of(prompt)
    if not begin and not prompt_ids:
        raise RequestError("an empty prompt needs a tokenizer with a first token", where="template")
    context = getattr(model.config, "max_position_embeddings", None)
    for option in question.options:
        whole = ids_of(prompt + between + option)
        option_ids = whole[len(prompt_ids) :]
        if question.chat or whole[: len(prompt_ids)] != prompt_ids:  # a token may reach across the boundary
            option_ids = ids_of(between + option)
        room = len(prompt_ids) if context is None else context - len(begin) - len(option_ids)
        if room < 0:
            raise RequestError(
                "an option is longer than the model's context",
                where=f"{option[:60]!r}",
                expected=f"at most {len(option_ids) + room} tokens",
                found=f"{len(option_ids)} tokens",
            )
        yield begin + prompt_ids[max(len(prompt_ids) - room, 0) :] + option_ids, len(option_ids)


def _mark(questions: Sequence[Question], answers: Scores) -> dict[str, np.ndarray]:
    """For each question whether it was answered, and the shares of the pick that are correct and of each other kind.
    Options that tie share the pick, so that an order of the options is no advantage."""
    marks = {k: np.zeros(len(questions)) for k in (*KINDS, "answered")}
    for q, (question, scores) in enumerate(zip(questions, answers, strict=True)):
        if scores is None:
            continue
        marks["answered"][q] = 1
        mean = np.array([nats / tokens for nats, tokens in scores])
        picked = np.flatnonzero(mean == mean.max())
        for o in picked:
            kind = "correct" if o == question.label else question.kinds[o] if question.kinds else None
            if kind is not None:
                marks[kind][q] += 1 / len(picked)
    marks["answered"] = marks["answered"].astype(bool)
    return marks


def _entry(figure: Figure) -> Entry:
    return {"accuracy": figure.value, **figure.also, "n": figure.documents, "ci95": figure.ci95, "skipped": figure.skipped}
