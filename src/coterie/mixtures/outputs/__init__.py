"""Mixtures at the outputs: whole models whose probabilities are mixed."""
