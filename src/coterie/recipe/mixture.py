"""A mixture of a recipe: one model a place where experts meet, told apart by `at`."""

from __future__ import annotations

from coterie.recipe.outputs import OutputsSpec

Mixture = OutputsSpec
