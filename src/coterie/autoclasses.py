"""Makes the Auto classes of transformers know our kinds when they are first used, and costs nothing before.

`import coterie` must register the kinds, and must not bring torch with it, since every call of the command line begins with
it. So the registration waits for the first `AutoConfig.from_pretrained`, through which every Auto class goes. Until
transformers loads the module of AutoConfig there is nothing to wait at; a finder waits for that.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

THEIRS = "transformers.models.auto.configuration_auto"
OURS = (
    "coterie.mixtures.outputs.outputs_mixture",
    "coterie.mixtures.layers.layers_mixture",
    "coterie.mixtures.adapters.adapters_mixture",
)
"""Register their kinds when imported."""


def watch() -> None:
    """Wait for the first use of an Auto class."""
    if THEIRS in sys.modules:
        _wait_for_use(sys.modules[THEIRS])
    else:
        sys.meta_path.insert(0, _Finder())


def _wait_for_use(module: ModuleType) -> None:
    auto: Any = module.AutoConfig
    original = auto.__dict__["from_pretrained"]

    def from_pretrained(cls: type, *args: Any, **kwargs: Any) -> Any:
        auto.from_pretrained = original
        for module in OURS:
            import_module(module)
        return cls.from_pretrained(*args, **kwargs)  # type: ignore[attr-defined]

    auto.from_pretrained = classmethod(from_pretrained)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != THEIRS:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Loads as the module's own loader does, and then waits for AutoConfig to be used."""

    def __init__(self, own: Loader) -> None:
        self.own = own

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.own.exec_module(module)
        _wait_for_use(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)
