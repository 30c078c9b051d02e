"""What torchrun starts on every rank: ``python -m coterie.launch.run_rank FOLDER OWNER``; see `coterie.launch.on_ranks`."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

from coterie.errors import CoterieError
from coterie.launch.process import end_with


def main(folder: Path, owner: int) -> None:
    end_with(owner)
    rank = os.environ["RANK"]
    sys.stderr = (folder / "progress.txt" if rank == "0" else Path(os.devnull)).open("a", buffering=1)
    try:
        result = pickle.loads((folder / "work").read_bytes())()
    except CoterieError as error:
        (folder / f"error-{rank}").write_bytes(pickle.dumps(error))
        os._exit(1)  # the other ranks wait for this one in vain; torchrun ends them
    if rank == "0":
        (folder / "result").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
