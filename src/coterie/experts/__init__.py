"""Train one expert once, resume it bit by bit, score it."""
