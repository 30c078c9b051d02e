"""Mixtures inside the layers: one base's attention and embeddings, several experts' feed-forward blocks, a gate a layer."""
