"""Mixtures: where experts meet. Importing this registers their kinds with the Auto classes of transformers."""

from coterie.mixtures.config import OutputsConfig
from coterie.mixtures.disk import assemble, materialise
from coterie.mixtures.fitting import fit_router
from coterie.mixtures.load import combine, load
from coterie.mixtures.members import Member
from coterie.mixtures.outputs import OutputsMixture
from coterie.mixtures.routed import routed
from coterie.mixtures.scored import Routed, routed_nll

__all__ = [
    "Member", "OutputsConfig", "OutputsMixture", "Routed", "assemble", "combine", "fit_router", "load", "materialise",
    "routed", "routed_nll",
]  # fmt: skip
