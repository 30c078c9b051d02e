"""A mixture of a recipe: one model a place where experts meet, told apart by `at`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from coterie.mixtures.adapters.adapters_place import AdaptersSpec
from coterie.mixtures.layers.layers_place import LayersSpec
from coterie.mixtures.outputs.outputs_place import OutputsSpec

Mixture = Annotated[OutputsSpec | LayersSpec | AdaptersSpec, Field(discriminator="at")]
