"""Losses by group, choices, references, comparisons with uncertainty, and the check for what was trained on."""

from coterie.evaluation.choices import Asked, evaluate_choices, score_options
from coterie.evaluation.evaluation_files import tables
from coterie.evaluation.leaks import check_leaks, find_leaks
from coterie.evaluation.losses import TokenLosses, evaluate_losses, paired
from coterie.evaluation.questions import Questions, read_questions

__all__ = [
    "Asked",
    "Questions",
    "TokenLosses",
    "check_leaks",
    "evaluate_choices",
    "evaluate_losses",
    "find_leaks",
    "paired",
    "read_questions",
    "score_options",
    "tables",
]
