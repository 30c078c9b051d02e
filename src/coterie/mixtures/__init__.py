"""Mixtures: where experts meet. What needs torch is imported when first used."""
