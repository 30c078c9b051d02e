"""A mixture of a recipe: one model a place where experts meet, told apart by `at`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from coterie.recipe.at_adapters import AdaptersSpec
from coterie.recipe.at_layers import LayersSpec
from coterie.recipe.at_outputs import OutputsSpec

Mixture = Annotated[OutputsSpec | LayersSpec | AdaptersSpec, Field(discriminator="at")]
