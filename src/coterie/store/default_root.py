"""Where the store is unless a person says otherwise."""

from __future__ import annotations

import os
from pathlib import Path


def default_root() -> Path:
    """`$COTERIE_STORE`, else the user's cache folder."""
    given = os.environ.get("COTERIE_STORE")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(cache) / "coterie"
