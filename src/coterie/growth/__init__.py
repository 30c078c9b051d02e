"""Experts as they are needed: is a corpus new, whose is it, which experts are alike; the library of skills that knows."""

from coterie.growth.growth_actions import features, library
from coterie.growth.skills import ALARM, Decision, Library, Skill, read_features

__all__ = ["ALARM", "Decision", "Library", "Skill", "features", "library", "read_features"]
