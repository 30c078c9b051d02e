"""What torchrun starts on every rank: ``python -m coterie.launch.rank FOLDER``; see `coterie.launch.on_ranks`."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

from coterie.errors import CoterieError


def main(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text())
    threading.Thread(target=_end_with, args=(request["owner"],), daemon=True).start()
    first = os.environ["RANK"] == "0"
    lines = folder / "progress.txt" if first else Path(os.devnull)
    sys.stderr = lines.open("a", buffering=1)
    module, name = request["call"].split(":")
    try:
        result = getattr(import_module(module), name)(request["payload"])
    except CoterieError as error:
        said = {key: getattr(error, key) for key in ("what", "where", "expected", "found", "kept", "do")}
        path = folder / f"error-{os.environ['RANK']}.json"
        path.write_text(json.dumps({"kind": type(error).__name__, **said}))
        os._exit(1)  # the other ranks wait for this one in vain; torchrun ends them
    if first:
        (folder / "result.json").write_text(json.dumps(result))


def _end_with(owner: int) -> None:
    """End this process when its owner has ended."""
    while True:
        try:
            os.kill(owner, 0)
        except OSError:
            os._exit(1)
        time.sleep(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
