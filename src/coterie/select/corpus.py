"""A corpus of a recipe: documents, and which of them are trained on."""

from __future__ import annotations

from coterie.corpora.corpus_settings import Documents
from coterie.select.select_settings import Select


class Corpus(Documents):
    """Documents with an id, text (or prompt and response) and optional columns."""

    select: Select | None = None
    """Choose the training documents by plan."""
