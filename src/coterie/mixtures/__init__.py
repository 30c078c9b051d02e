"""Mixtures: where experts meet. What needs torch is imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from coterie.mixtures.outputs.coadapt_action import adapted, coadapt
from coterie.mixtures.outputs.outputs_actions import assemble, fit_router, materialise, routed
from coterie.mixtures.seats import Member

if TYPE_CHECKING:
    from coterie.mixtures.load import combine, load
    from coterie.mixtures.outputs.cached_scores import Routed, routed_nll
    from coterie.mixtures.outputs.outputs_config import OutputsConfig
    from coterie.mixtures.outputs.outputs_mixture import OutputsMixture

_HOMES = {
    "OutputsConfig": "outputs.outputs_config",
    "OutputsMixture": "outputs.outputs_mixture",
    "Routed": "outputs.cached_scores",
    "combine": "load",
    "load": "load",
    "routed_nll": "outputs.cached_scores",
}

__all__ = [
    "Member",
    "OutputsConfig",
    "OutputsMixture",
    "Routed",
    "adapted",
    "assemble",
    "coadapt",
    "combine",
    "fit_router",
    "load",
    "materialise",
    "routed",
    "routed_nll",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module("coterie.mixtures.outputs.outputs_mixture")  # registers the kinds
    found = getattr(import_module(f"coterie.mixtures.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
