"""A Hugging Face model directory, or a hub id, as an artifact: hashed where it lies, checked before anything rests on it.

Only safetensors and JSON are read. Pickled weights, code beside the weights, kernels from a hub, missing shards and
numbers that are not finite are refused here, before a plan is made, because each of them loads without a word elsewhere.
"""

from __future__ import annotations

import re
from pathlib import Path

from coterie.errors import RequestError
from coterie.spec.digest import digest
from coterie.spec.json_file import read_json
from coterie.store import Artifact, sha256
from coterie.store.admit import INDEX, admit, shards_of
from coterie.store.artifact import Content

TOKENIZER_FILES = {
    *"tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json chat_template.json".split(),
    *"vocab.txt merges.txt tokenizer.model spiece.model sentencepiece.bpe.model chat_template.jinja".split(),
}
"""Files of a tokenizer that may stand beside the weights."""

FILES = TOKENIZER_FILES | {"config.json", "generation_config.json", "adapter_config.json", "model.safetensors.index.json"}
"""The same, and those of a model besides its weights."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def contents(artifact: Artifact) -> str:
    """Digest of what decides a model's or a tokenizer's function: configuration, weights and tokenizer. Figures and logs
    beside them are left out, so that a retrained but equal model serves the same."""
    if artifact.planned:
        return artifact.content("model")
    found = digest({name: hash for name, hash in artifact.files.items() if name in FILES or name.endswith(".safetensors")})
    return Content(found, artifact.whole or artifact.digest)


def checkpoint(path_or_id: str | Path, revision: str | None = None) -> Artifact:
    """The model in a local directory, or downloaded from the hub, as an artifact outside the store.

    Args:
        path_or_id: directory with ``config.json``, safetensors and tokenizer files, or a hub id.
        revision: commit or tag, for hub ids.

    Raises:
        RequestError: what is there is no whole, finite, safe model.
    """
    folder = Path(path_or_id).expanduser()
    if not folder.is_dir():
        folder = _download(str(path_or_id), revision)
    elif revision is not None:
        raise RequestError("a local directory has no revision", where=str(folder), found=revision, do="remove base.revision")
    from coterie.models.quiet import load_strictly

    if not (folder / "config.json").exists():
        raise RequestError(
            "not a Hugging Face model directory", where=str(folder), expected="config.json", found="no such file"
        )
    admit(folder)
    if "model_type" not in read_json(folder / "config.json"):
        raise RequestError(
            "the configuration names no architecture", where=str(folder / "config.json"), expected="model_type"
        )
    shards = weight_files(folder)
    _check_finite(shards)
    load_strictly(folder, device_map="meta")
    files = {p.name: sha256(p) for p in sorted(folder.iterdir()) if p.is_file() and (p in shards or p.name in FILES)}
    return Artifact("weights", digest(files), folder.absolute(), files)


def _download(name: str, revision: str | None) -> Path:
    if not _HUB_ID.fullmatch(name):
        raise RequestError(
            "no such directory", where=name, expected="a Hugging Face model directory or a hub id", do="correct base.path"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
            )
        )
    except Exception as error:
        raise RequestError(
            "the model is neither a directory here nor could it be fetched from the hub",
            where=name,
            found=str(error).splitlines()[0] if str(error) else type(error).__name__,
            do="set base.path to a local directory, or check the id and the network",
        ) from None


def require_same_base(folder: Path, base: Artifact) -> None:
    """RequestError if an adapter says that it was trained on another base than this one, by content."""
    facts = folder / "facts.json"
    expected = read_json(facts).get("base") if facts.is_file() else None
    if expected is not None and not base.planned and expected != contents(base):
        raise RequestError(
            "the adapter was trained on another base",
            where=str(folder),
            expected=expected[:16],
            found=contents(base)[:16],
            do="use the base that it names",
        )


def weight_files(folder: Path) -> list[Path]:
    """The weight files: one, or those an index names, which must lie in the directory itself."""
    index = folder / INDEX
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file():
        pickled = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"))
        adapter = "a LoRA adapter: name the model it rests on" if (folder / "adapter_config.json").exists() else None
        raise RequestError(
            "pickled weights are refused: opening them can run code" if pickled else "no weights",
            where=str(folder),
            expected="model.safetensors",
            found=", ".join(pickled) or adapter or "none",
            do="convert them once in a sandbox and save with save_pretrained",
        )
    shards = []
    for name in sorted(set(shards_of(index).values())):
        if not (folder / name).is_file():
            raise RequestError("a part of the weights is missing", where=str(folder / name), expected="named in the index")
        shards.append(folder / name)
    return shards


def _check_finite(shards: list[Path]) -> None:
    from safetensors import SafetensorError, safe_open

    from coterie.models.bounded import require_finite

    for shard in shards:
        try:
            with safe_open(shard, framework="pt") as file:
                require_finite(((name, file.get_tensor(name)) for name in file.keys()), shard)  # noqa: SIM118 - no mapping
        except SafetensorError as error:
            raise RequestError("damaged weights", where=str(shard), found=str(error), do="fetch the file again") from None
