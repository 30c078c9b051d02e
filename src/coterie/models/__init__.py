"""Open or initialise a base; adapters; log-probabilities; devices. What needs torch is imported when first used."""
