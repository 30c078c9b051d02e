"""The parts of a corpus that are read and profiled apart: some files each, on any process or machine that shares the store.

Everything that is measured in a part depends on its documents alone, so parts merge exactly (``pool``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from coterie.corpora.documents import read_corpus, tolerate
from coterie.corpora.formats import FORMATS
from coterie.corpora.row_plan import OWN, Plan, beside_own
from coterie.corpora.sources import resolve
from coterie.errors import RequestError
from coterie.select.plan_settings import CLUSTER, GROUP
from coterie.select.profile import profile
from coterie.select.select_settings import Corpus
from coterie.store import Artifact, Store

SHARD_BYTES = 64 << 20
"""Files are taken together up to this size."""


def kept_columns(corpus: Corpus) -> list[str]:
    """The columns that a corpus keeps for their own sake."""
    fitted = (CLUSTER, GROUP) if corpus.select is not None and corpus.select.topics is not None else ()
    return [c for c in beside_own(corpus, corpus.columns) if c not in fitted]


def plain(corpus: Corpus) -> Corpus:
    """The corpus without its selection, with the columns that the selection reads."""
    assert corpus.select is not None
    columns = beside_own(corpus, [*kept_columns(corpus), *corpus.select.columns])
    return corpus.model_copy(update={"select": None, "columns": tuple(columns)})


def shards(corpus: Corpus, label: str, *, download: bool) -> list[Corpus]:
    """The corpus in parts.

    One part where rows of different files decide about each other (groups, limits) or ids come from the file's name.
    """
    whole = plain(corpus)
    if whole.split.group is not None or whole.limit is not None or whole.hub is not None or whole.split_name is not None:
        return [whole]
    sources = resolve(whole, label, download=download)
    if len(sources) == 1 or not all(FORMATS[s.format].apart for s in sources):
        return [whole]
    parts: list[list[str]] = []
    room = 0
    for source in sources:
        if room < source.size or not parts:
            parts.append([])
            room = SHARD_BYTES
        parts[-1].append(str(source.path))
        room -= source.size
    bear_all = whole.bad_rows.model_copy(update={"share": 1.0, "most": 2**40})
    return [whole.model_copy(update={"path": tuple(paths), "bad_rows": bear_all}) for paths in parts]


def profile_parts(
    store: Store, corpus: Corpus, *, label: str, only: tuple[int, int] | None = None
) -> list[tuple[Artifact, Artifact]]:
    """Read and profile every part: (documents, profile) of each, sorted by digest, so that their order is nobody's choice.

    Args:
        only: (i, n): the parts i, i + n, ... alone, as one of n processes that share the store.

    Raises:
        RequestError: what `documents` raises; a column of the selection that the data does not have.
    """
    assert corpus.select is not None
    parts = shards(corpus, label, download=not store.dry)
    if only is not None:
        parts = parts[only[0] :: only[1]]
    names = [label if len(parts) == 1 else f"{label} part {i + 1} of {len(parts)}" for i in range(len(parts))]
    own = [c for c in corpus.select.columns if c in OWN and c in (corpus.id, corpus.time)]
    made: list[tuple[Artifact, Artifact]] = []
    with _named(corpus, label):
        for part, name in zip(parts, names, strict=True):
            read = read_corpus(store, part, label=label)
            made.append((read, profile(store, read, corpus.select, has_id=corpus.id is not None, label=name, own=own)))
    if len(made) > 1 and not any(d.planned for d, _ in made):
        tolerate(Plan(plain(corpus), f"corpora.{label}"), [d for d, _ in made])
    return sorted(made, key=lambda pair: (pair[1].digest, pair[0].digest))


@contextmanager
def _named(corpus: Corpus, label: str) -> Iterator[None]:
    """A missing column is laid at the door of the key that asked for it."""
    assert corpus.select is not None
    try:
        yield
    except RequestError as error:
        key = corpus.select.columns.get(error.found or "")
        if (error.where or "").endswith(".columns") and key is not None and error.found not in corpus.columns:
            error.where = f"corpora.{label}.select.{key}"
            error.do = f"correct {error.where}"
        raise
