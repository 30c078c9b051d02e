"""Losses by group, choices, references, comparisons with uncertainty, and the check for what was trained on."""
