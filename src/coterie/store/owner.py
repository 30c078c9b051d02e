"""Names that tell who made something temporary, so that it can be known when its maker is gone. Never by age."""

from __future__ import annotations

import os
import socket

HOST = "".join(c if c.isalnum() or c in ".-" else "-" for c in socket.gethostname())[:100] or "unknown"


def owner() -> str:
    """``~<random>.<pid>.<host>``: ends the name of everything temporary."""
    return f"~{os.urandom(4).hex()}.{os.getpid()}.{HOST}"


def owner_of(name: str) -> tuple[int, str] | None:
    """(pid, host) from a name that ends with ``owner()``."""
    parts = name.rpartition("~")[2].split(".", 2)
    return (int(parts[1]), parts[2]) if len(parts) == 3 and parts[1].isdigit() else None


def dead(name: str) -> bool:
    """Whether the process that a name ends with has certainly ended. Of other hosts nothing is certain."""
    made_by = owner_of(name)
    if made_by is None or made_by[1] != HOST or os.name == "nt":  # on Windows, signal 0 is no question
        return False
    try:
        os.kill(made_by[0], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
