"""From what a recipe names to the files to read: a file, a glob, a list, a folder, a saved or hub dataset."""

from __future__ import annotations

import difflib
import glob
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from coterie.corpora.corpus_settings import Documents
from coterie.corpora.formats import ARROW, AUTO, SAVED, endings, of_file
from coterie.corpora.source_file import Source
from coterie.errors import RequestError
from coterie.spec.json_types import Settings


def resolve(corpus: Documents, name: str, *, download: bool = True) -> list[Source]:
    """The files of a corpus, in a fixed order.

    Args:
        name: the corpus's name in the recipe, for messages.
        download: whether a hub dataset may be fetched; without, only one that is already on this machine is found.

    Raises:
        RequestError: naming the key to set.
    """
    if corpus.hub is not None:
        from coterie.corpora.hub import files

        found = [Source.of(path, label, ARROW.tag) for path, label in files(corpus, name, download=download)]
    else:
        paths = (corpus.path,) if isinstance(corpus.path, str) else corpus.path or ()
        found = [source for path in paths for source in _at(path, corpus, f"corpora.{name}")]
    seen, key = set[Path](), f"corpora.{name}"
    for source in found:
        real = source.path.resolve()
        if real in seen:
            raise RequestError("a file is named twice", where=f"{key}.path", found=str(source.path), do="name it once")
        seen.add(real)
    return found


def _at(path: str, corpus: Documents, key: str) -> Iterator[Source]:
    """The files that one path names."""
    here = Path(path)
    if here.is_dir():
        yield from _folder(here, corpus, key)
    elif here.exists():
        yield _file(here, here.name, corpus, key)
    elif any(c in path for c in "*?["):
        base = Path(path[: min(path.index(c) for c in "*?[" if c in path)].rpartition("/")[0] or ".")
        hits = sorted(Path(p) for p in glob.glob(path, recursive=True) if Path(p).is_file())
        if not hits:
            raise RequestError("no file matches", where=f"{key}.path", found=path, do="correct the pattern")
        for hit in hits:
            yield _file(hit, os.path.relpath(hit, base), corpus, key)
    else:
        siblings = [p.name for p in here.parent.iterdir()] if here.parent.is_dir() else []
        similar = difflib.get_close_matches(here.name, siblings, 1)
        raise RequestError(
            "no such file or folder",
            where=f"{key}.path",
            found=path,
            do=f"did you mean {similar[0]!r}?" if similar else "correct the path; it is relative to the recipe",
        )


def _file(path: Path, label: str, corpus: Documents, key: str) -> Source:
    if not path.is_file():
        raise RequestError("not a regular file", where=f"{key}.path", found=str(path))
    if corpus.format == SAVED.tag:
        raise RequestError("a saved dataset is a folder", where=f"{key}.path", found=str(path), do=f"correct {key}.format")
    tag = of_file(path) if corpus.format == AUTO else corpus.format
    if tag is None:
        raise RequestError(
            "the file's ending does not tell its format",
            where=f"{key}.path",
            expected=", ".join(endings()) + ", also with .gz or .zst",
            found=str(path),
            do=f"set {key}.format",
        )
    return Source.of(path, label, tag)


def _folder(folder: Path, corpus: Documents, key: str) -> Iterator[Source]:
    if any((folder / mark).is_file() for mark in SAVED.marks):
        if corpus.format not in (AUTO, SAVED.tag):
            what, expected = "the folder is a saved dataset", f"{AUTO} or {SAVED.tag}"
            raise RequestError(what, where=f"{key}.format", expected=expected, found=corpus.format)
        for path in _saved(folder, corpus.split_name, key):
            yield Source.of(path, path.relative_to(folder).as_posix(), ARROW.tag)
        return
    if corpus.format == SAVED.tag:
        raise RequestError(
            "the folder is no saved dataset",
            where=f"{key}.path",
            expected=f"{' or '.join(reversed(SAVED.marks))} in it (datasets' save_to_disk)",
            found=str(folder),
        )
    hidden = re.compile(r"(^|/)(\.|__pycache__(/|$))")
    inside = sorted(p for p in folder.rglob("*") if p.is_file() and not hidden.search(p.relative_to(folder).as_posix()))
    of = {p: tag for p in inside if (tag := of_file(p)) is not None and corpus.format in (AUTO, tag)}
    tags = sorted(set(of.values()))
    if len(tags) > 1:
        raise RequestError(
            "the folder holds files of several formats",
            where=f"{key}.path",
            found=f"{', '.join(tags)} in {folder}",
            do=f"set {key}.format to one of them, or name the files",
        )
    if not of:
        suffixes = sorted({p.suffix or p.name for p in inside})
        raise RequestError(
            "the folder holds no file that can be read",
            where=f"{key}.path",
            expected=", ".join(e for e, tag in endings().items() if corpus.format in (AUTO, tag)),
            found=f"{len(inside)} files ({', '.join(suffixes[:8])}) in {folder}" if inside else f"no file in {folder}",
            do=f"name the files by a pattern such as {folder}/**/*.ext and set {key}.format",
        )
    for path, tag in of.items():
        yield Source.of(path, path.relative_to(folder).as_posix(), tag)


def _saved(folder: Path, split_name: str | None, key: str) -> Iterator[Path]:
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
