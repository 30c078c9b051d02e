"""Train one expert once, resume it bit by bit, score it."""

from coterie.experts.verbs import score, train

__all__ = ["score", "train"]
