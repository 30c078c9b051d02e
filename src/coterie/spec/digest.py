"""Hashes of requests: equal requests give equal bytes, and equal bytes one digest."""

from __future__ import annotations

import hashlib
import json

SCHEMA = 1
"""Version of the recipe's meaning. A change here changes every hash."""


def canonical_json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """sha256 (hex) of the canonical JSON of ``value`` together with the schema version."""
    return hashlib.sha256(canonical_json({"schema": SCHEMA, "value": value}).encode()).hexdigest()
