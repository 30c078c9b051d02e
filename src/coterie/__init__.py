"""Train language-model experts once, each on its own slice of data, and make them work together as one model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coterie.autoclasses import watch
from coterie.run import run

if TYPE_CHECKING:
    from coterie.mixtures.load import load

__version__ = "0.1.0"
__all__ = ["__version__", "load", "run"]


def __dir__() -> list[str]:
    return list(__all__)


def __getattr__(name: str) -> object:
    """What brings torch with it is imported when first used."""
    if name == "load":
        from coterie.mixtures.load import load

        return load
    raise AttributeError(f"module 'coterie' has no attribute {name!r}")


watch()
