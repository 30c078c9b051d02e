"""Mixtures of LoRA experts on one frozen base. What needs torch is imported when first used."""
