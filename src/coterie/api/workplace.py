"""Where what Python asks for is made: a store, and a folder for what is on its way into it."""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path

from coterie.store import Store
from coterie.store.durable import discard, make_directory, owner


class Workplace:
    """A store and a folder in it. The folder goes with this object; so does the store where none was given.

    Args:
        store: a folder that is kept; None: a temporary one.
    """

    def __init__(self, store: str | Path | None = None) -> None:
        root = Path(tempfile.mkdtemp(prefix="coterie-")) if store is None else Path(store)
        self.store = Store(root)
        self.store.enter()
        self.folder = self.store.root / "temp" / f"session{owner()}"
        make_directory(self.folder)
        weakref.finalize(self, _close, os.getpid(), self.store, self.folder if store is not None else self.store.root)


def _close(pid: int, store: Store, folder: Path) -> None:
    if pid == os.getpid():
        store.leave()
        discard(folder)
