"""Train one expert once, resume it bit by bit, score it."""

from coterie.experts.expert_actions import score, train

__all__ = ["score", "train"]
