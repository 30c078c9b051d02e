"""Evaluation texts that training must not repeat: long runs of words that occur in both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float32, UInt64

from coterie.corpora.corpus_settings import Documents
from coterie.corpora.documents import rows
from coterie.corpora.row_plan import Plan
from coterie.corpora.sources import resolve
from coterie.corpora.template import RowError
from coterie.select.select_settings import Against
from coterie.select.sketch import shingles
from coterie.select.words import Words, words
from coterie.store import Store

_KEY = "select.keep.contamination"


def identity(store: Store, against: Against | None) -> list[object] | None:
    """What decides the result: the bytes of the files and the length of a run."""
    if against is None:
        return None
    sources = resolve(_corpus(against), _KEY, download=False)
    return [against.words, against.text, [[s.format, store.digest_file(s.path)] for s in sources]]


def _corpus(against: Against) -> Documents:
    return Documents.model_validate({"path": against.path, "text": against.text})


@dataclass(frozen=True)
class Runs:
    """Hashes of all runs of words in the evaluation texts, sorted."""

    hash_R: UInt64[np.ndarray, " R"]
    words: int

    def share(self, found: Words) -> Float32[np.ndarray, " D"]:
        """Share of each document's runs that occur in the evaluation texts."""
        made = shingles(found, self.words)
        at = np.minimum(np.searchsorted(self.hash_R, made.hash_S), len(self.hash_R) - 1)
        upto = np.concatenate([[0], np.cumsum(self.hash_R[at] == made.hash_S)])[made.first_D1]
        return (np.diff(upto) / np.maximum(np.diff(made.first_D1), 1)).astype(np.float32)


@cache
def runs(against: Against | None) -> Runs | None:
    """Read the evaluation texts.

    Raises:
        RequestError: a file or the column is missing, or no text is there.
    """
    if against is None:
        return None
    corpus = _corpus(against)
    plan, seen, read, found = Plan(corpus, _KEY), set[str](), 0, []
    for source in resolve(corpus, _KEY, download=False):
        for item, _ in rows(source, corpus.encoding, frozenset(plan.needed), seen, _KEY):
            read += 1
            try:
                document = plan.document(getattr(item, "values", {}))
            except RowError:
                continue
            if not isinstance(document, str):
                found.append(np.unique(shingles(words([document.text]), against.words).hash_S))
    plan.check_columns(seen, read)
    return Runs(np.unique(np.concatenate([*found, np.zeros(1, np.uint64)])), against.words)
