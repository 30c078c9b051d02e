"""Work whose owner is gone must not go on beside its successor."""

from __future__ import annotations

import os
import threading
import time


def end_with(owner: int) -> None:
    """End this process, however busy it is, within a second of the end of process ``owner``."""
    threading.Thread(target=_watch, args=(owner,), daemon=True).start()


def _watch(owner: int) -> None:
    while True:
        try:
            os.kill(owner, 0)
        except OSError:
            os._exit(1)
        time.sleep(1)
