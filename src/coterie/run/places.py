"""How one mixture of a recipe is made from what the conductor has: one module a place, the same functions in each.

- ``make(c, mixture)``: the ``mixtures`` artifact, with all that has to be fitted, trained or merged for it.
- ``scores(c, mixture, blocks)``: its log-probabilities on blocks, and who was used, as `coterie.mixtures.routed` gives them.
- ``put(c, mixture, folder)``: a directory that opens by itself with `coterie.load`.
- ``experts(c, mixture)``: the distinct experts by name, in the order of the figures of use.
- ``seats(c, mixture)``: for each slot its name and the digest of the expert there.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from coterie.recipe.places import Mixture


def of(mixture: Mixture) -> Any:
    """The module for the place where the mixture's experts meet."""
    return import_module(f"coterie.run.{mixture.at}_place")
