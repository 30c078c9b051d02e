"""Types of what goes into and comes out of JSON."""

from __future__ import annotations

from typing import Any, TypeAlias

Figures: TypeAlias = dict[str, Any]
"""A JSON object of figures; the function that gives it says which."""

Settings: TypeAlias = dict[str, Any]
"""A JSON object of settings, such as a model's `config.json`; the function that takes it says which."""
