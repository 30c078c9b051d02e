"""What stands behind an expert: its own text, its base's and its ancestors'. Eligibility goes by the latest of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date

from coterie.experts.expert_settings import Expert
from coterie.recipe.base import FreshBase
from coterie.recipe.recipe import Recipe


@dataclass
class Lineage:
    """Everything that bounds what an expert knows."""

    dates: list[date] = field(default_factory=list)
    """Ends of windows, and dates that the recipe states."""
    corpora: list[str] = field(default_factory=list)
    """Corpora with dates, read without a window: their latest document counts."""
    unknown: list[str] = field(default_factory=list)
    """Reasons why no date can be given."""


def lineage(recipe: Recipe, experts: Iterable[Expert], name: str) -> Lineage:
    """Walk from an expert to what it started from. Fresh weights know nothing."""
    by_name = {e.name: e for e in experts}
    found = Lineage()
    at = name
    while at in by_name:
        expert = by_name[at]
        if expert.window is not None:
            found.dates.append(expert.window.end)
            if expert.finished:
                return found
        elif expert.finished:
            found.unknown.append(f"{expert.adapter or expert.model} was made elsewhere")
        else:
            _corpus(recipe, expert.corpus, found)
        at = expert.from_
    if at == "base":
        _base(recipe, found)
    return found


def corpora_lineage(recipe: Recipe, corpora: Iterable[str]) -> Lineage:
    """What stands behind a model that is trained from the base on whole corpora."""
    found = Lineage()
    for corpus in corpora:
        _corpus(recipe, corpus, found)
    _base(recipe, found)
    return found


def _base(recipe: Recipe, found: Lineage) -> None:
    base = recipe.base
    if base.knowledge_until is not None:
        found.dates.append(base.knowledge_until)
        return
    if not isinstance(base, FreshBase):
        found.unknown.append(f"the base {base.path} states no knowledge_until")
    for corpus in base.pretrain.corpora if base.pretrain else ():
        _corpus(recipe, corpus, found)


def _corpus(recipe: Recipe, name: str, found: Lineage) -> None:
    if recipe.corpora[name].undated is not None:
        found.unknown.append(f"corpus {name!r} holds documents without a date")
    elif recipe.corpora[name].time is None:
        found.unknown.append(f"corpus {name!r} has no time column")
    else:
        found.corpora.append(name)
