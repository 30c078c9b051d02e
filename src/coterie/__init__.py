"""Train language-model experts once, each on its own slice of data, and make them work together as one model."""

from __future__ import annotations

from coterie import start  # noqa: F401 (first of all)  # isort: skip

from importlib import import_module
from typing import TYPE_CHECKING

from coterie.errors import RequestError, WorkError
from coterie.run import run
from coterie_autoclasses import watch

if TYPE_CHECKING:
    from coterie.api import router_kinds as routers
    from coterie.api.evaluating import evaluate
    from coterie.api.mixing import mix
    from coterie.api.opening import load
    from coterie.api.train_from_data import train
    from coterie.corpora.corpus_settings import Documents
    from coterie.experts.train_settings import EarlyStopping, Train
    from coterie.mixtures.layers.layers_settings import Tune
    from coterie.models.lora_settings import Lora
    from coterie.routing.output_routers import Linear, Mlp, Posterior, Uniform

__version__ = "0.1.0"
__all__ = [
    "Documents",
    "EarlyStopping",
    "Linear",
    "Lora",
    "Mlp",
    "Posterior",
    "RequestError",
    "Train",
    "Tune",
    "Uniform",
    "WorkError",
    "__version__",
    "evaluate",
    "load",
    "mix",
    "routers",
    "run",
    "train",
]

_FROM = {
    "routers": "coterie.api.router_kinds",
    "evaluate": "coterie.api.evaluating",
    "train": "coterie.api.train_from_data",
    "mix": "coterie.api.mixing",
    "load": "coterie.api.opening",
    "Documents": "coterie.corpora.corpus_settings",
    "EarlyStopping": "coterie.experts.train_settings",
    "Train": "coterie.experts.train_settings",
    "Tune": "coterie.mixtures.layers.layers_settings",
    "Lora": "coterie.models.lora_settings",
    **dict.fromkeys(("Linear", "Mlp", "Posterior", "Uniform"), "coterie.routing.output_routers"),
}
"""Where a name is; it is imported when first used, since some bring torch with them."""


def __getattr__(name: str) -> object:
    if name not in _FROM:
        raise AttributeError(f"module 'coterie' has no attribute {name!r}")
    module = import_module(_FROM[name])
    return module if name == "routers" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__


watch()
