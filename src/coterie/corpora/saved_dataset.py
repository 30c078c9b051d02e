"""What `save_to_disk` of `datasets` wrote: its Arrow files are read directly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from coterie.errors import RequestError
from coterie.spec.json_types import Settings


def arrow_files(folder: Path, split_name: str | None, key: str) -> Iterator[Path]:
    """The files of a saved dataset, or of one split of it.

    Args:
        key: the corpus's place in the recipe, for messages.

    Raises:
        RequestError: no such split; a file is missing or cannot be read.
    """
    parts = [folder]
    if (folder / "dataset_dict.json").is_file():
        splits = list(_json(folder / "dataset_dict.json", key)["splits"])
        if split_name is not None and split_name not in splits:
            raise RequestError(
                f"the dataset has no split {split_name!r}", where=f"{key}.split_name", expected=", ".join(splits)
            )
        parts = [folder / split for split in splits if split_name in (None, split)]
    for part in parts:
        for entry in _json(part / "state.json", key)["_data_files"]:
            path = part / Path(entry["filename"]).name
            if not path.is_file():
                raise RequestError("a file of the saved dataset is missing", where=f"{key}.path", found=str(path))
            yield path


def _json(path: Path, key: str) -> Settings:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RequestError("the saved dataset cannot be read", where=f"{key}.path", found=f"{path}: {error}") from None
