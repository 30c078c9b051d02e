"""Lets the Auto classes of transformers open mixtures in every process of an environment that has Coterie installed.

transformers has no entry point for kinds of models, and remote code is not for us. So `coterie_autoclasses.pth` imports
this file when Python starts, and it waits: for the module of AutoConfig to be loaded, and then for a model type of ours. A
process that opens no mixture pays for one file and imports nothing else of ours. ``COTERIE_AUTOCLASSES=off`` in the
environment switches it off; after `import coterie` the Auto classes know our kinds all the same.
"""

import os
import sys

THEIRS = "transformers.models.auto.configuration_auto"
OURS = (
    "coterie.mixtures.outputs.outputs_mixture",
    "coterie.mixtures.layers.layers_mixture",
    "coterie.mixtures.adapters.adapters_mixture",
)
"""Register their kinds when imported."""


def watch():
    """Wait for the first use of an Auto class. More calls than one are as one."""
    if THEIRS in sys.modules:
        _wait_for_use(sys.modules[THEIRS])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _wait_for_use(module):
    auto = module.AutoConfig
    original = auto.__dict__["from_pretrained"]
    if getattr(original.__func__, "__module__", "") == __name__:  # it waits already
        return

    def from_pretrained(cls, *args, **kwargs):
        try:
            return original.__get__(None, cls)(*args, **kwargs)
        except ValueError as error:  # what is said of a model type that nobody registered
            if "coterie_" not in str(error):
                raise
        from importlib import import_module

        auto.from_pretrained = original
        for name in OURS:
            import_module(name)
        return cls.from_pretrained(*args, **kwargs)

    auto.from_pretrained = classmethod(from_pretrained)


class _Finder:  # importlib.abc, which would name what this is, takes longer to load than all the rest
    def find_spec(self, fullname, path=None, target=None):
        if fullname != THEIRS:
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]
        return spec


class _Loader:
    """Loads as the module's own loader does, and then waits for AutoConfig to be used."""

    def __init__(self, own):
        self.own = own

    def create_module(self, spec):
        return self.own.create_module(spec)

    def exec_module(self, module):
        self.own.exec_module(module)
        _wait_for_use(module)

    def __getattr__(self, name):
        return getattr(self.own, name)


if os.environ.get("COTERIE_AUTOCLASSES") != "off":
    watch()
