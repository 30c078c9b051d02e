"""Experts and mixtures from objects at hand: all that a recipe does, in Python."""
