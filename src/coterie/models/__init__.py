"""Open or initialise a base; adapters; log-probabilities; devices. What needs torch is imported when first used."""

from typing import TYPE_CHECKING, Any

from coterie.models.checkpoint import checkpoint, contents
from coterie.models.initialise import initialise, reinitialise

if TYPE_CHECKING:
    from coterie.models.logprob import log_probs, target_logp
    from coterie.models.open import open_model

__all__ = ["checkpoint", "contents", "initialise", "log_probs", "open_model", "reinitialise", "target_logp"]


def __getattr__(name: str) -> Any:
    if name in ("log_probs", "target_logp"):
        from coterie.models import logprob

        return getattr(logprob, name)
    if name == "open_model":
        from coterie.models.open import open_model

        return open_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
