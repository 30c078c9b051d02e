"""From what a recipe names to the files to read: a file, a glob, a list, a folder, a saved or hub dataset."""

from __future__ import annotations

import difflib
import glob
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coterie.corpora.corpus_settings import Documents
from coterie.errors import RequestError

TEXT_ENDINGS = frozenset({".txt", ".text", ".md", ".markdown", ".rst", ".py", ".tex", ".org", ".adoc"})
ENDINGS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    **dict.fromkeys(TEXT_ENDINGS, "text"),
}


@dataclass(frozen=True)
class Source:
    """One file to read."""

    path: Path
    name: str
    """Inside the folder that was named, or the file's name; the id of a text file."""
    format: str
    """jsonl, csv, parquet, arrow or text."""
    size: int
    modified: int
    """Nanoseconds; tells whether the file changed between hashing and reading."""


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

        found = [_source(path, label, "arrow") for path, label in files(corpus, name, download=download)]
    else:
        paths = (corpus.path,) if isinstance(corpus.path, str) else corpus.path or ()
        found = [source for path in paths for source in _named(path, corpus, name)]
    seen: set[Path] = set()
    for source in found:
        real = source.path.resolve()
        if real in seen:
            raise RequestError(
                "a file is named twice", where=f"corpora.{name}.path", found=str(source.path), do="name it once"
            )
        seen.add(real)
    return found


def _named(path: str, corpus: Documents, name: str) -> Iterator[Source]:
    here = Path(path)
    if here.is_dir():
        yield from _folder(here, corpus, name)
    elif here.exists():
        yield _file(here, here.name, corpus, name)
    elif any(c in path for c in "*?["):
        base = Path(path[: min(path.index(c) for c in "*?[" if c in path)].rpartition("/")[0] or ".")
        hits = sorted(Path(p) for p in glob.glob(path, recursive=True) if Path(p).is_file())
        if not hits:
            raise RequestError("no file matches", where=f"corpora.{name}.path", found=path, do="correct the pattern")
        for hit in hits:
            yield _file(hit, os.path.relpath(hit, base), corpus, name)
    else:
        siblings = [p.name for p in here.parent.iterdir()] if here.parent.is_dir() else []
        near = difflib.get_close_matches(here.name, siblings, 1)
        raise RequestError(
            "no such file or folder",
            where=f"corpora.{name}.path",
            found=path,
            do=f"did you mean {near[0]!r}?" if near else "correct the path; it is relative to the recipe",
        )


def _file(path: Path, label: str, corpus: Documents, name: str) -> Source:
    if not path.is_file():
        raise RequestError("not a regular file", where=f"corpora.{name}.path", found=str(path))
    if corpus.format == "dataset":
        raise RequestError(
            "a saved dataset is a folder", where=f"corpora.{name}.path", found=str(path), do=f"correct corpora.{name}.format"
        )
    form = corpus.format if corpus.format != "auto" else _format(path)
    if form is None:
        raise RequestError(
            "the file's ending does not tell its format",
            where=f"corpora.{name}.path",
            expected=", ".join(ENDINGS) + ", also with .gz or .zst",
            found=str(path),
            do=f"set corpora.{name}.format",
        )
    return _source(path, label, form)


def _source(path: Path, label: str, form: str) -> Source:
    status = path.stat()
    return Source(path, label, form, status.st_size, status.st_mtime_ns)


def _format(path: Path) -> str | None:
    endings = [e.lower() for e in path.suffixes[-2:]]
    if endings and endings[-1] in (".gz", ".zst"):
        endings.pop()
    return ENDINGS.get(endings[-1]) if endings else None


def _folder(folder: Path, corpus: Documents, name: str) -> Iterator[Source]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        if corpus.format not in ("auto", "dataset"):
            raise RequestError(
                "the folder is a saved dataset",
                where=f"corpora.{name}.format",
                expected="auto or dataset",
                found=corpus.format,
            )
        yield from _saved(folder, corpus, name)
        return
    if corpus.format == "dataset":
        raise RequestError(
            "the folder is no saved dataset",
            where=f"corpora.{name}.path",
            expected="state.json or dataset_dict.json in it (datasets' save_to_disk)",
            found=str(folder),
        )
    inside = sorted(p for p in folder.rglob("*") if p.is_file() and not _hidden(p.relative_to(folder)))
    formats = {p: _format(p) for p in inside}
    if corpus.format != "auto":
        chosen = [p for p in inside if formats[p] == corpus.format]
    else:
        kinds = sorted({form for form in formats.values() if form is not None})
        if len(kinds) > 1:
            raise RequestError(
                "the folder holds files of several formats",
                where=f"corpora.{name}.path",
                found=f"{', '.join(kinds)} in {folder}",
                do=f"set corpora.{name}.format to one of them, or name the files",
            )
        chosen = [p for p in inside if formats[p] is not None]
    if not chosen:
        endings = sorted({p.suffix or p.name for p in inside})
        raise RequestError(
            "the folder holds no file that can be read",
            where=f"corpora.{name}.path",
            expected=", ".join(e for e, form in ENDINGS.items() if corpus.format in ("auto", form)),
            found=f"{len(inside)} files ({', '.join(endings[:8])}) in {folder}" if inside else f"no file in {folder}",
            do=f"name the files by a pattern such as {folder}/**/*.ext and set corpora.{name}.format",
        )
    for path in chosen:
        yield _source(path, path.relative_to(folder).as_posix(), formats[path] or corpus.format)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _saved(folder: Path, corpus: Documents, name: str) -> Iterator[Source]:
    """What datasets' ``save_to_disk`` wrote; its Arrow files are read directly."""
    if (folder / "dataset_dict.json").is_file():
        splits = list(_json(folder / "dataset_dict.json", name)["splits"])
        if corpus.split_name is not None and corpus.split_name not in splits:
            raise RequestError(
                f"the dataset has no split {corpus.split_name!r}",
                where=f"corpora.{name}.split_name",
                expected=", ".join(splits),
            )
        parts = [folder / split for split in splits if corpus.split_name in (None, split)]
    else:
        parts = [folder]
    for part in parts:
        for entry in _json(part / "state.json", name)["_data_files"]:
            path = part / Path(entry["filename"]).name
            if not path.is_file():
                raise RequestError("a file of the saved dataset is missing", where=f"corpora.{name}.path", found=str(path))
            yield _source(path, path.relative_to(folder).as_posix(), "arrow")


def _json(path: Path, name: str) -> dict:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise RequestError(
            "the saved dataset cannot be read", where=f"corpora.{name}.path", found=f"{path}: {error}"
        ) from None


@contextmanager
def unchanged(source: Source) -> Iterator[None]:
    """The bytes that are read must be those that were hashed.

    Raises:
        RequestError: the file cannot be read, or changed meanwhile.
    """
    try:
        yield
        status = source.path.stat()
    except OSError as error:
        raise RequestError("the file cannot be read", where=str(source.path), found=error.strerror or str(error)) from None
    if (status.st_size, status.st_mtime_ns) != (source.size, source.modified):
        raise RequestError("the file changed while it was read", where=str(source.path), do="run the same command again")
