"""Hugging Face datasets by hub id, through the `datasets` library; its cached files are read like any Arrow file."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

from coterie.corpora.corpus_settings import Documents
from coterie.errors import RequestError


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
    with _network(download):
        try:
            loaded = datasets.load_dataset(str(corpus.hub), corpus.config, revision=corpus.revision, split=corpus.split_name)
        except Exception as error:
            raise RequestError(
                f"the dataset {corpus.hub!r} cannot be fetched",
                where=f"corpora.{name}",
                found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}",
                do=f"without a network, set corpora.{name}.path to a copy (--set corpora.{name}.path=FILE-or-FOLDER)",
            ) from None
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
