"""What the configuration of a mixture of adapters says, as JSON values; reading it loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from coterie.mixtures.adapters.adapter_routers import AdapterGate
from coterie.spec.json_types import Settings

Maturity = Literal["new", "training", "mature"]
"""Of an expert. A new one has no weight and is not run. While one is in training all that run answer; then the policy
selects."""


def gate_settings(gate: AdapterGate) -> Settings:
    """What the gates of a mixture are."""
    return gate.model_dump(mode="json", include={"kind", "scope", "reads", "top_k", "top_p", "temperature"})


def mixture_settings(
    experts: Mapping[str, str | None],
    slots: Iterable[tuple[str, int]],
    router: Settings,
    *,
    base: str | None = None,
    maturity: Maturity = "mature",
) -> Settings:
    """See `AdaptersConfig`.

    Args:
        experts: digest of each distinct expert, by name; None: of no matter.
        slots: name and number of the expert of each.
        base: its digest.
    """
    return {
        "slots": [{"name": name, "expert": expert} for name, expert in slots],
        "experts": [{"name": n, "dir": f"experts/{n}", "digest": d, "maturity": maturity} for n, d in experts.items()],
        "base": {"dir": "base", "digest": base},
        "router": dict(router),
    }
