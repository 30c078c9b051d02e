"""How a file of multiple-choice questions is read: the settings."""

from __future__ import annotations

from coterie.spec.settings import Name, Spec


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
