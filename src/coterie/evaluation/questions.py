"""Multiple-choice questions: a JSONL file, read strictly, each fault named by file and line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path

from coterie.dates import day
from coterie.errors import RequestError
from coterie.spec.digest import digest
from coterie.spec.settings import Name, Spec

KINDS = ("correct", "past", "future", "irrelevant")


@dataclass(frozen=True)
class Question:
    """One question as it is put to a model."""

    prompt: str
    """What stands before each option."""
    options: tuple[str, ...]
    label: int
    """Index of the right option."""
    kinds: tuple[str, ...] | None
    """Kind of each option: one of KINDS."""
    time: date | None
    """Date as of which it is asked."""
    group: str | None
    chat: bool = False
    """It is put in the tokenizer's chat template."""


@dataclass(frozen=True)
class Questions:
    """All questions of one file."""

    items: tuple[Question, ...]

    @cached_property
    def digest(self) -> str:
        """Of all that is asked, and how it is marked and grouped."""
        return digest([self.asked, [[q.label, q.kinds, q.group] for q in self.items]])

    @cached_property
    def asked(self) -> str:
        """Digest of what a model gets to see."""
        chat = [["chat"]] if self.items[0].chat else []
        return digest([[q.prompt, q.options, q.time and q.time.toordinal(), *chat] for q in self.items])


def read_questions(spec: QuestionSettings) -> Questions:
    """Read the file a recipe names; RequestError, with file and line, if it, a line of it or a column is wrong."""
    path = Path(spec.choices)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RequestError(
            "the questions cannot be read",
            where=f"evaluation.{spec.name}.choices",
            found=f"{path}: {error.strerror}",
            do="correct the path; it is relative to the recipe",
        ) from None
    items = tuple(_question(line, spec, f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip())
    if not items:
        raise RequestError("there is no question in the file", where=str(path), found="empty file")
    return Questions(items)


def _question(line: bytes, spec: QuestionSettings, where: str) -> Question:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RequestError("the line is not UTF-8", where=where, found=f"byte 0x{line[error.start]:02x}") from None
    except ValueError as error:
        raise RequestError("the line is not JSON", where=where, found=str(error)) from None
    if not isinstance(row, dict):
        raise RequestError("the line is not a JSON object", where=where, found=type(row).__name__)

    def column(key: str) -> object:
        name = getattr(spec, key)
        if row.get(name) is None:
            raise RequestError(
                f"there is no column {name!r}" if name not in row else f"the column {name!r} is null",
                where=where,
                expected=f"one of {', '.join(row)}",
                do=f"name the right one: evaluation.{spec.name}.{key}",
            )
        return row[name]

    options = column("options")
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(o, str | int | float) for o in options):
        raise RequestError("the options are not a list of at least two texts", where=where, found=f"{options!r:.80}")
    options = tuple(str(o) for o in options)
    if "" in map(str.strip, options):
        raise RequestError("an option is empty", where=where, found=f"{options!r:.80}")
    label = column("label")
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(options):
        raise RequestError(
            "the label is not the index of an option", where=where, expected=f"0 to {len(options) - 1}", found=repr(label)
        )
    return Question(
        _prompt(spec, {**row, "question": column("question")}, where),
        options,
        label,
        _kinds(spec, row, options, label, where),
        None if spec.time is None else _date(column("time"), spec, where),
        None if spec.by is None else str(column("by")),
        spec.chat,
    )


def _prompt(spec: QuestionSettings, row: dict[str, object], where: str) -> str:
    try:
        return spec.template.format_map(row)
    except KeyError as error:
        raise RequestError(
            f"the template names a column that is not there: {error}",
            where=where,
            expected=f"of {', '.join(row)}",
            do=f"correct evaluation.{spec.name}.template; braces are doubled to stand for themselves",
        ) from None
    except (ValueError, IndexError, AttributeError) as error:
        raise RequestError("the template is wrong", where=f"evaluation.{spec.name}.template", found=str(error)) from None


def _kinds(spec: QuestionSettings, row: dict[str, object], options: tuple, label: int, where: str) -> tuple[str, ...] | None:
    if spec.kinds is None or row.get(spec.kinds) is None:
        if spec.kinds not in (None, QuestionSettings.model_fields["kinds"].default):
            raise RequestError(
                f"there is no column {spec.kinds!r}",
                where=where,
                expected=f"one of {', '.join(row)}",
                do=f"name the right one, or leave out evaluation.{spec.name}.kinds",
            )
        return None
    kinds = row[spec.kinds]
    if not isinstance(kinds, list) or len(kinds) != len(options) or not all(k in KINDS for k in kinds):
        raise RequestError(
            "the options' kinds are wrong",
            where=where,
            expected=f"{len(options)} of {', '.join(KINDS)}",
            found=f"{kinds!r:.80}",
        )
    if kinds[label] != "correct" or kinds.count("correct") > 1:
        raise RequestError(
            "label and kinds disagree", where=where, expected=f"'correct' for option {label} alone", found=f"{kinds!r:.80}"
        )
    return tuple(kinds)


def _date(value: object, spec: QuestionSettings, where: str) -> date:
    try:
        return day(value if isinstance(value, str | int | date) else str(value))
    except RequestError as error:
        raise RequestError(
            f"the column {spec.time!r} is no date", where=where, expected=error.expected, found=repr(value)
        ) from None


class QuestionSettings(Spec):
    """A JSONL file of questions, and the columns of what is asked."""

    name: Name
    """Name of the evaluation."""
    choices: str
    """JSONL file with a question, options and the index of the right one."""
    question: str = "question"
    """Column of the question."""
    options: str = "options"
    """Column of the list of options."""
    label: str = "label"
    """Column of the index of the right option."""
    kinds: str | None = "option_kinds"
    """Column of the options' kinds (`correct`, `past`, `future`, `irrelevant`), if there is one."""
    time: str | None = None
    """Column of the date as of which the question is asked."""
    by: str | None = None
    """Group by this column; one group `all` without it."""
    template: str = "{question} "
    """What is put before each option."""
    chat: bool = False
    """Ask in the chat template of each model's tokenizer: the template's text as the user, an option as the assistant."""
