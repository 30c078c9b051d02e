"""Train one expert once, resume it bit by bit, score it."""

from coterie.experts.score import score
from coterie.experts.train import train

__all__ = ["score", "train"]
