"""Open or initialise a base; adapters; log-probabilities; devices."""

from coterie.models.checkpoint import checkpoint, contents
from coterie.models.initialise import initialise
from coterie.models.logprob import log_probs, target_logp
from coterie.models.open import open_model

__all__ = ["checkpoint", "contents", "initialise", "log_probs", "open_model", "target_logp"]
