"""How many experts answer at a position: the settings."""

from __future__ import annotations

from pydantic import model_validator

from coterie.spec.settings import Count, Positive, Spec


class PolicySettings(Spec):
    """From a router's logits to weights."""

    top_k: Count | None = None
    """Keep the k experts with the largest weights (equal slots count as one expert); the rest are not mixed in."""
    top_p: Positive | None = None
    """Keep the fewest experts whose weights sum to at least this; with `top_k`, at most so many."""
    temperature: Positive = 1.0
    """Divides the router's logits: below 1 sharper, above 1 flatter."""

    @model_validator(mode="after")
    def _top_p_is_a_share(self) -> PolicySettings:
        if self.top_p is not None and self.top_p > 1:
            raise ValueError("top_p is a share of the weight: at most 1")
        return self
