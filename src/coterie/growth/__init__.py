"""Experts as they are needed: is a corpus new, whose is it, which experts are alike; the library of skills that knows."""

from coterie.growth.skills import ALARM, Decision, Library, Skill, read_features
from coterie.growth.verbs import features, library

__all__ = ["ALARM", "Decision", "Library", "Skill", "features", "library", "read_features"]
