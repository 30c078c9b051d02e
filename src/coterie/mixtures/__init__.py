"""Mixtures: where experts meet. What needs torch is imported when first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from coterie.mixtures.adapting import adapted, coadapt
from coterie.mixtures.members import Member
from coterie.mixtures.verbs import assemble, fit_router, materialise, routed

if TYPE_CHECKING:
    from coterie.mixtures.config import OutputsConfig
    from coterie.mixtures.opening import combine, load
    from coterie.mixtures.outputs import OutputsMixture
    from coterie.mixtures.scored import Routed, routed_nll

_HOMES = {
    "OutputsConfig": "config", "OutputsMixture": "outputs", "Routed": "scored", "combine": "opening", "load": "opening",
    "routed_nll": "scored",
}  # fmt: skip

__all__ = [
    "Member", "OutputsConfig", "OutputsMixture", "Routed", "adapted", "assemble", "coadapt", "combine", "fit_router", "load",
    "materialise",
    "routed", "routed_nll",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module("coterie.mixtures.outputs")  # registers the kinds
    found = getattr(import_module(f"coterie.mixtures.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
