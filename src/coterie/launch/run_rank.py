"""What torchrun starts on every rank: ``python -m coterie.launch.run_rank FOLDER``; see `coterie.launch.on_ranks`."""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path

from coterie.errors import CoterieError
from coterie.launch.orphans import end_with


def main(folder: Path) -> None:
    request = json.loads((folder / "request.json").read_text())
    end_with(request["owner"])
    first = os.environ["RANK"] == "0"
    lines = folder / "progress.txt" if first else Path(os.devnull)
    sys.stderr = lines.open("a", buffering=1)
    module, name = request["call"].split(":")
    try:
        result = getattr(import_module(module), name)(request["payload"])
    except CoterieError as error:
        fields = {key: getattr(error, key) for key in ("what", "where", "expected", "found", "kept", "do")}
        path = folder / f"error-{os.environ['RANK']}.json"
        path.write_text(json.dumps({"kind": type(error).__name__, **fields}))
        os._exit(1)  # the other ranks wait for this one in vain; torchrun ends them
    if first:
        (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
