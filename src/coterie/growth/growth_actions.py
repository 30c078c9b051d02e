"""The verbs of growth: features of a corpus, and the library of skills. Neither imports torch if its result is there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from coterie.models import device
from coterie.models.checkpoint import contents
from coterie.store import Action, Artifact, Store


def features(store: Store, base: Artifact, blocks: Artifact, *, label: str) -> Artifact:
    """One vector a document: the mean over its tokens of the frozen base's last hidden state.

    Padding, the batch and the documents packed beside it have no part in it.

    Returns:
        a ``features`` artifact: ``features.safetensors`` with ``mean`` [D, H] and ``tokens`` [D], in the order of the
        blocks' documents.
    """
    where = device.pick()
    inputs = {"base": contents(base), "blocks": blocks.content("blocks.safetensors")}
    action = Action("features", {}, inputs, ("torch", "transformers"), device.numerics(where, "fp32"))

    def build(folder: Path) -> None:
        from coterie.growth.document_features import write

        write(base, blocks, where, label, folder)

    return store.make(action, build, label=label)


def make_library(
    store: Store,
    skills: Mapping[str, tuple[Artifact, Artifact]],
    *,
    experts: Mapping[str, str],
    label: str = "skill library",
) -> Artifact:
    """What each skill's texts look like to the base, and how far known texts stray by chance.

    Args:
        skills: features of each skill's training documents and of held-out ones, by name.
        experts: who has each skill.

    Returns:
        a ``libraries`` artifact: ``library.json`` (readable) and ``library.safetensors``; see `coterie.growth.Library`.
    """
    order: Sequence[str] = list(skills)
    spec = {"skills": [{"name": name, "expert": experts[name]} for name in order]}
    inputs = {f"learned.{i}": skills[n][0].content("features.safetensors") for i, n in enumerate(order)}
    inputs |= {f"held.{i}": skills[n][1].content("features.safetensors") for i, n in enumerate(order)}

    def build(folder: Path) -> None:
        from coterie.growth.novelty import Library, read_features

        made = Library([])
        for name in order:
            made.add(name, experts[name], *(read_features(a) for a in skills[name]))
        made.write(folder)

    return store.make(Action("libraries", spec, inputs, ("scikit-learn",)), build, label=label)
