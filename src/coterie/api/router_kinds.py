"""Every router by place, for ``router=``: ``coterie.routers.outputs.Posterior(decay=0.9)``,
``coterie.routers.layers.Label()``, ``coterie.routers.adapters.Arrow(top_k=1)``."""

from __future__ import annotations

from coterie.mixtures.adapters import adapter_routers as adapters
from coterie.mixtures.layers import layer_gates as layers
from coterie.routing import output_routers as outputs

__all__ = ["adapters", "layers", "outputs"]
