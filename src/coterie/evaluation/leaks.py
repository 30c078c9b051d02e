"""What is evaluated was not trained on, by content.

Exact: the same content hash (whitespace and Unicode form do not matter) stands among the documents that anything was trained
on; such documents are left out of the evaluation. Near: at least half of a document's runs of eight words occur in the
training documents; these are counted and named, and kept, for a quotation or a licence text can do that too.

The evaluated side is small, so only it is held: of each document the 128 runs with the smallest hashes (all of them if it
has fewer; the share found is then exact, else within 0.09 of it at 95 %), while the training documents stream past once and
are looked up. The price of words: text that was only re-wrapped or re-cased is found, what was paraphrased is not.

Letters: D evaluated documents, W words, H hashes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Int, UInt64

from coterie.evaluation.questions import Questions
from coterie.select.sketch import Shingles, shingles
from coterie.select.words import batches, words
from coterie.store import Action, Artifact, Store

WORDS = 8
"""Words in a run."""
SKETCH = 128
"""Runs kept of an evaluated document."""
NEAR = 0.5
"""Share of the runs that makes a near-duplicate."""
_NAMED = 100
"""Near-duplicates that are named; all are counted."""
_BATCH = 1 << 20
"""Characters of texts looked at together."""
_SLOT_BITS = 22
_ALONE = re.compile(r"[\u0e00-\u0eff]")
"""Letters of scripts that write without spaces, besides those that `words` takes one by one: Thai and Lao."""


@dataclass(frozen=True)
class Text:
    """One document, evaluated or trained on."""

    id: str
    content: str
    """Its content hash."""
    text: str


@dataclass(frozen=True)
class Found:
    """What the check found."""

    exact: list[Text]
    near: list[tuple[Text, float, Text]]
    """(evaluated document, share of its runs in the training documents, the one in which most of them were met first)."""


def runs(texts: Iterable[str]) -> Iterator[Shingles]:
    """A hash for each run of eight words, without case and punctuation; one for all of a shorter text. In batches."""
    for batch in batches((_ALONE.sub(r" \g<0> ", text.lower()) for text in texts), _BATCH):
        yield shingles(words(batch), WORDS)


class _Sketches:
    """A few runs of each evaluated document, to be looked up while training documents stream past."""

    def __init__(self, evaluated: Sequence[Text]) -> None:
        made = (hash_H for some in runs(d.text for d in evaluated) for hash_H in np.split(some.hash_S, some.first_D1[1:-1]))
        sketches = [np.unique(hash_H)[:SKETCH] for hash_H in made]
        self.hash_H = np.unique(np.concatenate([np.empty(0, np.uint64), *sketches]))
        self.place_D = [np.searchsorted(self.hash_H, s) for s in sketches]
        self.first_H = np.full(len(self.hash_H), -1)
        """The training document in which each run was first met."""
        self._slots = np.zeros(1 << _SLOT_BITS, bool)
        self._slots[self._slot(self.hash_H)] = True

    @staticmethod
    def _slot(hash_: UInt64[np.ndarray, " H"]) -> Int[np.ndarray, " H"]:
        return (hash_ >> np.uint64(64 - _SLOT_BITS)).astype(np.int64)

    def look_up(self, hash_: UInt64[np.ndarray, " H"], source: Int[np.ndarray, " H"]) -> None:
        """Note the runs of some training documents, given each run's document."""
        maybe = self._slots[self._slot(hash_)]  # most runs are dismissed here, for a fraction of the search's cost
        hash_, source = hash_[maybe], source[maybe]
        place = np.searchsorted(self.hash_H, hash_)
        place[place == len(self.hash_H)] = 0
        new = (self.hash_H[place] == hash_) & (self.first_H[place] < 0)
        self.first_H[place[new][::-1]] = source[new][::-1]  # of equal places the last one written stays: the first met

    def share(self, d: int) -> tuple[float, int]:
        """Share of a document's runs that were met, and the training document in which most of them were met first."""
        met = self.first_H[self.place_D[d]]
        met = met[met >= 0]
        return (len(met) / len(self.place_D[d]), int(np.bincount(met).argmax())) if len(met) else (0.0, -1)


def find_leaks(evaluated: Sequence[Text], trained: Iterable[Text]) -> Found:
    """Documents that were trained on, and those of which at least half was. What is evaluated is held in memory; what was
    trained on is read once, in order."""
    sketches = _Sketches(evaluated)
    contents: set[str] = set()
    known: list[Text] = []
    """Training documents without their text, for naming."""

    def distinct() -> Iterator[str]:
        for document in trained:
            if document.content not in contents:
                contents.add(document.content)
                known.append(Text(document.id, document.content, ""))
                yield document.text

    done = 0
    for made in runs(distinct()):
        size_D = np.diff(made.first_D1)
        sketches.look_up(made.hash_S, np.repeat(np.arange(done, done + len(size_D)), size_D))
        done += len(size_D)
    exact, near = [], []
    for d, document in enumerate(evaluated):
        share, like = sketches.share(d)
        if document.content in contents:
            exact.append(document)
        elif share >= NEAR:
            near.append((document, share, known[like]))
    return Found(exact, sorted(near, key=lambda n: (-n[1], n[0].content)))


def check_leaks(
    store: Store,
    *,
    evaluated: Sequence[tuple[Artifact, Artifact]],
    trained: Sequence[tuple[Artifact, Artifact]],
    questions: Sequence[Questions] = (),
    label: str = "check that nothing evaluated was trained on",
) -> Artifact:
    """Compare evaluated documents with all that anything was trained on.

    Args:
        evaluated, trained: (blocks, the documents they were cut from); trained: of base, experts and single.
        questions: of choices; each with its right answer is one more document, called by its beginning.

    Returns:
        artifact `evaluations`, whose facts are ``evaluated``, ``trained`` (distinct documents), ``exact``, ``near`` and
        ``named``: ``{"exact": [{id, content}], "near": [{id, content, share, like}]}``.
    """
    pairs = {"evaluated": evaluated, "trained": trained}
    action = Action(
        "evaluations",
        spec={"evaluation": "leaks", "words": WORDS, "sketch": SKETCH, "near": NEAR},
        inputs={
            f"{side}.{i}.{role}": artifact.content("documents.parquet")
            for side, sources in pairs.items()
            for i, source in enumerate(sources)
            for role, artifact in zip(("blocks", "documents"), source, strict=True)
        }
        | {f"questions.{i}": q.digest for i, q in enumerate(questions)},
        libraries=("numpy",),
    )

    def build(folder: Path) -> None:
        unique = list({d.content: d for d in (*_texts(evaluated), *_asked(questions))}.values())
        contents = {c for blocks, _ in trained for c in _contents(blocks)}
        found = find_leaks(unique, _texts(trained))
        exact = [{"id": d.id, "content": d.content} for d in found.exact]
        near = [{"id": d.id, "content": d.content, "share": round(s, 3), "like": t.id} for d, s, t in found.near]
        facts = {
            "evaluation": "leaks",
            "evaluated": len(unique),
            "trained": len(contents),
            "exact": len(exact),
            "near": len(near),
            "named": {"exact": exact, "near": near[:_NAMED]},
        }
        text = json.dumps(facts, indent=1, sort_keys=True)
        (folder / "evaluation.json").write_text(text)
        (folder / "facts.json").write_text(text)

    return store.make(action, build, label=label)


def leaked(check: Artifact) -> frozenset[str]:
    """Content hashes of the evaluated documents that were trained on."""
    return frozenset(d["content"] for d in check.facts["named"]["exact"])


def _contents(blocks: Artifact) -> list[str]:
    return pl.read_parquet(blocks.file("documents.parquet"), columns=["content"], glob=False)["content"].to_list()


def _texts(sources: Sequence[tuple[Artifact, Artifact]]) -> Iterator[Text]:
    """The documents that stand in the blocks, with their text; each source is read once."""
    wanted: dict[str, tuple[Artifact, set[str]]] = {}
    for blocks, documents in sources:
        wanted.setdefault(documents.digest, (documents, set()))[1].update(_contents(blocks))
    for documents, contents in wanted.values():
        table = pl.scan_parquet(documents.file("documents.parquet"), glob=False).select("id", "content", "prompt", "text")
        for part in table.filter(pl.col("content").is_in(list(contents))).collect().iter_slices(10_000):
            for id_, content, prompt, text in part.iter_rows():
                yield Text(id_, content, f"{prompt}\n{text}" if prompt else text)


def _asked(questions: Sequence[Questions]) -> Iterator[Text]:
    """Questions are never exact hits, which are left out, for they are no documents; those trained on are near by 1.0."""
    for question in (q for file in questions for q in file.items):
        text = question.prompt + question.options[question.label]
        yield Text(question.prompt.strip()[:80], f"question {text}", text)
