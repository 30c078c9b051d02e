"""The mixtures of a recipe with globs written out and every name and setting checked against the experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from coterie.errors import RequestError
from coterie.mixtures.place import Neighbours, Place, known
from coterie.recipe.lineage import lineage

if TYPE_CHECKING:
    from coterie.experts.expert_settings import Expert
    from coterie.recipe.recipe import Recipe


def checked_mixtures(recipe: Recipe, experts: Mapping[str, Expert]) -> tuple[Place, ...]:
    """The recipe's mixtures, ready to be made.

    Args:
        experts: all of the recipe by name, families expanded.

    Raises:
        RequestError: ``where`` is the dotted key.
    """
    named = [
        m.model_copy(update={"slots": _slots(m, experts, f"mixtures.{i}.slots")}) for i, m in enumerate(recipe.mixtures)
    ]
    behind = {name: lineage(recipe, experts.values(), name).unknown for name in experts}
    unknown = {name: reasons[0] for name, reasons in behind.items() if reasons}
    among = Neighbours(experts, list(recipe.corpora), unknown, {m.name: m for m in named})
    return tuple(mixture.checked(among, f"mixtures.{i}") for i, mixture in enumerate(named))


def _slots(mixture: Place, names: Sequence[str] | Mapping[str, Expert], where: str) -> tuple[str, ...]:
    slots: list[str] = []
    for pattern in mixture.slots:
        if any(c in pattern for c in "*?["):
            hits = [n for n in names if fnmatchcase(n, pattern)]
            if not hits:
                raise RequestError(f"the glob {pattern!r} matches no expert", where=where, expected=", ".join(names))
            slots.extend(hits)
        else:
            known(pattern, names, where, "expert")
            slots.append(pattern)
    return tuple(slots)
