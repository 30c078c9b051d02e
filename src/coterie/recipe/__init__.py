"""A whole recipe: how a file becomes one, and what it says of itself. No torch."""

from coterie.recipe.read_recipe import read
from coterie.recipe.recipe import Recipe

__all__ = ["Recipe", "read"]
