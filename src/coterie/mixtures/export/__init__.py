"""Checkpoints in standard formats, from mixtures inside the layers; each is read back and compared."""
