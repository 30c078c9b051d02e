"""The one way in: whatever is opened as a model, an adapter, a tokenizer or a mixture is looked at here first.

What comes from elsewhere is not trusted (SECURITY.md). Refused before any of it is opened: bytes that are not those of the
manifest, what is no plain file, code and kernels that a configuration names, weights outside the folder, and lists so long
that no weights can be behind them.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from coterie.errors import RequestError
from coterie.spec.json_file import read_json
from coterie.spec.json_types import Figures
from coterie.store.artifact import sha256
from coterie.store.whole import require_whole

INDEX = "model.safetensors.index.json"
CONFIGURATIONS = (
    "config.json",
    "tokenizer_config.json",
    "adapter_config.json",
    "generation_config.json",
    "processor_config.json",
    "preprocessor_config.json",
)
"""Files of which transformers and PEFT may take the name of code."""
_CODE = ("auto_map", "custom_pipelines", "custom_generate", "megatron_config")
"""Keys that name code: of the folder, of a hub, or of whatever module Python finds."""
_LISTS = frozenset(
    {
        "num_hidden_layers",
        "num_layers",
        "n_layer",
        "n_layers",
        "encoder_layers",
        "decoder_layers",
        "num_encoder_layers",
        "num_decoder_layers",
        "num_labels",
    }
)
"""Keys of which transformers makes lists with so many entries, before a weight is looked at."""
_LONGEST = 2**16


def admit(folder: Path) -> None:
    """Look at a folder before anything in it is opened; of a mixture, at its base and experts too.

    Raises:
        RequestError: something in it is damaged, or would make opening it unsafe; names the file and the key.
    """
    places = [p for p in (folder, folder / "base", *sorted(folder.glob("experts/*"))) if p.is_dir()]
    for place in places:
        for path in place.iterdir():
            if path.exists() and not (path.is_file() or path.is_dir()):
                raise RequestError(
                    "only plain files are opened",
                    where=str(path),
                    expected="a plain file",
                    found="a device" if stat.S_ISBLK(path.stat().st_mode) or stat.S_ISCHR(path.stat().st_mode) else "a pipe",
                    do="take it away",
                )
            _inside(path, place)
    require_whole(folder)
    for place in places:
        for name in CONFIGURATIONS:
            if (place / name).is_file():
                _refuse(place / name, read_json(place / name))
        if (place / INDEX).is_file():
            shards_of(place / INDEX)


def _inside(path: Path, place: Path) -> None:
    """A link may lead to another file of its folder, to an object of a store (which is what its name says), or to one of the
    same repository in a hub's cache (``blobs`` beside ``snapshots``); any other would read what is not the folder's."""
    if not path.is_symlink():
        return
    target, home = path.resolve(), place.resolve()
    manifest = target / "manifest.json"
    is_object = target.is_dir() and manifest.is_file() and sha256(manifest) == target.name
    cached = home.parent.name == "snapshots" and target.is_relative_to(home.parents[1] / "blobs")
    if not is_object and not cached and not target.is_relative_to(home):
        raise RequestError(
            "a link leads out of the folder, which is refused",
            where=str(path),
            expected=f"a file in {home}",
            found=str(target),
            do="copy the folder with what its links lead to: cp -rL",
        )


def shards_of(index: Path) -> dict[str, str]:
    """The file of each tensor that an index names, all below the index's own folder.

    Raises:
        RequestError: it is no index, or points outside.
    """
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict):
        raise RequestError("cannot be read", where=str(index), expected="weight_map", found=type(files).__name__)
    for name in files.values():
        inside = isinstance(name, str) and not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts
        if not inside or not name.endswith(".safetensors"):
            raise RequestError(
                "the index points outside the directory",
                where=str(index),
                expected="safetensors files beside it",
                found=str(name),
                do="use a checkpoint that is whole in its folder",
            )
    return files


def _refuse(file: Path, config: Figures) -> None:
    for key, value, about in _walk(config):
        kernel = about.endswith("_implementation") and isinstance(value, str) and "/" in value
        if (key in _CODE and value) or kernel:
            raise RequestError(
                "the model asks for code from elsewhere to be run, which is refused",
                where=f"{file} ({key})",
                found=str(value)[:200],
                do="convert it to an architecture of transformers",
            )
        if isinstance(value, list | dict) and len(value) > _LONGEST and file.name == "config.json":
            raise RequestError(
                "the configuration lists more than any model holds",
                where=f"{file} ({key})",
                expected=f"at most {_LONGEST:,} entries",
                found=f"{len(value):,}",
                do="correct it, or fetch the model again",
            )
        if key in _LISTS and isinstance(value, int | float) and not 0 <= value <= _LONGEST:
            raise RequestError(
                "the configuration claims more than any weights hold",
                where=f"{file} ({key})",
                expected=f"at most {_LONGEST:,}",
                found=f"{value:,}",
                do="correct it, or fetch the model again",
            )


def _walk(value: object, about: str = "") -> Iterator[tuple[str, object, str]]:
    """Every key with its value, however deep, and the nearest key above that is about an implementation, else itself."""
    for key, child in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        inner = about if about.endswith("_implementation") else str(key)
        yield str(key), child, inner
        yield from _walk(child, inner)
