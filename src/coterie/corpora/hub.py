"""Hugging Face datasets by hub id: the Arrow files that `datasets` caches; or a stream into windows of time, in one pass, of
which what fills them is kept and the rest never fetched."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from urllib.parse import urlparse

from coterie.corpora.corpus_settings import Documents
from coterie.corpora.reading import RowFile
from coterie.corpora.row_plan import Plan
from coterie.corpora.template import RowError
from coterie.corpora.windows import Window
from coterie.errors import RequestError
from coterie.progress import bar, say
from coterie.store import Action, Artifact, Store

BYTES_A_TOKEN = 6
"""More than any byte-level tokenizer needs for prose or code, so that no window falls short."""


def files(corpus: Documents, name: str, *, download: bool) -> list[tuple[Path, str]]:
    """Fetch a dataset (or find it in the cache) and list its Arrow files.

    Raises:
        RequestError: it cannot be fetched (saying which path to set instead); a slice of a split.
    """
    import datasets

    if "[" in (corpus.split_name or ""):
        raise RequestError(
            "a part of a split cannot be named here",
            where=f"corpora.{name}.split_name",
            found=corpus.split_name,
            do=f"name the whole split and set corpora.{name}.limit",
        )
    copy = f"corpora.{name}.path to a copy (--set corpora.{name}.path=FILE-or-FOLDER)"
    with _network(download), _refused(corpus, name, "fetched", copy):
        loaded = datasets.load_dataset(str(corpus.hub), corpus.config, revision=corpus.revision, split=corpus.split_name)
    parts = loaded if isinstance(loaded, dict) else {corpus.split_name or "all": loaded}
    return [
        (Path(entry["filename"]), f"{split}/{Path(entry['filename']).name}")
        for split, part in parts.items()
        for entry in part.cache_files
    ]


@contextmanager
def _network(download: bool) -> Iterator[None]:
    """The hub's client retries for half a minute when there is no network. Ask once, then use its cache only."""
    import datasets
    import huggingface_hub.constants as hub

    if download and not hub.HF_HUB_OFFLINE and not any(k.lower() in ("https_proxy", "all_proxy") for k in os.environ):
        try:
            socket.getaddrinfo(urlparse(hub.ENDPOINT).hostname, 443)
        except OSError:
            download = False
    before = hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not download:
        hub.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


@contextmanager
def _refused(corpus: Documents, name: str, done: str, copy: str) -> Iterator[None]:
    """Whatever the hub's libraries raise."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(
            f"the dataset {corpus.hub!r} cannot be {done}",
            where=f"corpora.{name}",
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}",
            do=f"without a network, set {copy}",
        ) from None


# streams ---------------------------------------------------------------------------------------------------------------


def streamed(store: Store, corpus: Documents, plan: Plan, *, label: str) -> Artifact:
    """The rows that fill the windows, as they were read.

    Returns:
        a ``streams`` artifact: ``rows.parquet`` with the columns that the recipe names; facts: rows ``read``, and for each
        window ``documents`` and ``bytes``.

    Raises:
        RequestError: the dataset cannot be read; no row lies in any window.
    """
    assert corpus.stream is not None
    spec = {
        "hub": corpus.hub,
        "config": corpus.config,
        "revision": corpus.revision,
        "split": corpus.split_name or "train",
        "stream": corpus.stream.model_dump(mode="json"),
        "columns": sorted(plan.needed),
        "time": corpus.time,
        "time_pattern": corpus.time_pattern,
        "where": corpus.model_dump(mode="json")["where"],
    }
    return store.make(Action("streams", spec), lambda folder: _read(corpus, plan, label, folder), label=f"stream {label}")


def _read(corpus: Documents, plan: Plan, label: str, folder: Path) -> None:
    stream = corpus.stream
    assert stream is not None
    windows, wanted = stream.windows.spans(), stream.tokens * BYTES_A_TOKEN
    documents, filled = Counter[Window](), Counter[Window]()
    seen: set[str] = set()
    read = unusable = 0
    rows = RowFile(folder / "rows.parquet", most=2000, compression="zstd")
    with bar(f"stream {label}", wanted * len(windows), "bytes") as progress:
        for row in islice(_stream(corpus, label), stream.rows):
            read += 1
            seen.update(row)
            try:
                document = plan.document(row)
            except RowError:
                unusable += 1
                continue
            if isinstance(document, str) or document.time is None:
                continue
            place = next((w for w in windows if w.start <= document.time < w.end), None)
            if place is None or filled[place] >= wanted:
                continue
            documents[place] += 1
            filled[place] += len((document.text + (document.prompt or "")).encode())
            rows.add({name: row.get(name) for name in sorted(plan.needed)})
            progress.to(sum(min(size, wanted) for size in filled.values()))
            if all(filled[w] >= wanted for w in windows):
                break
    if not documents:
        if read:
            plan.check_columns(seen, read)
        raise RequestError(
            f"none of {read:,} rows lies in a window",
            where=f"corpora.{label}.stream.windows",
            found=f"{unusable:,} rows without a usable text or date",
            do="correct the windows, time or time_pattern",
        )
    rows.close()
    for w in windows:
        if filled[w] < wanted:
            say(f"  {label}: [{w.start}, {w.end}) has {filled[w]:,} of {wanted:,} bytes: the stream ended")
    found = [{"start": str(w.start), "end": str(w.end), "documents": documents[w], "bytes": filled[w]} for w in windows]
    facts = {"read": read, "unusable": unusable, "windows": found}
    (folder / "facts.json").write_text(json.dumps(facts, indent=1, sort_keys=True))


def _stream(corpus: Documents, label: str) -> Iterator[dict[str, object]]:
    import datasets

    with _refused(corpus, label, "streamed", f"corpora.{label}.path to a copy, without hub and stream"):
        yield from datasets.load_dataset(
            str(corpus.hub), corpus.config, revision=corpus.revision, split=corpus.split_name or "train", streaming=True
        )
