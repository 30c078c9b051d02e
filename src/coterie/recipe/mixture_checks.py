"""Who sits in a mixture: globs become slots, and every name and setting is checked against the experts."""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from typing import Any

from coterie.errors import RequestError
from coterie.experts.expert_settings import Expert
from coterie.mixtures.adapters import adapters_place as adapters
from coterie.mixtures.adapters.adapters_place import AdaptersSpec
from coterie.mixtures.layers import layers_place as layers
from coterie.mixtures.layers.layers_place import LayersSpec
from coterie.mixtures.outputs.outputs_place import OutputsSpec
from coterie.recipe.lineage import lineage
from coterie.recipe.places import Mixture
from coterie.recipe.recipe import Recipe


def seat(recipe: Recipe, mixture: Mixture, experts: list[Expert], where: str) -> Mixture:
    """The mixture with its slots by name.

    Args:
        experts: all of the recipe, families expanded.
        where: the mixture's key in the recipe.
    """
    names = [e.name for e in experts]
    slots: list[str] = []
    for pattern in mixture.slots:
        if any(c in pattern for c in "*?["):
            hits = [n for n in names if fnmatchcase(n, pattern)]
            if not hits:
                raise RequestError(
                    f"the glob {pattern!r} matches no expert", where=f"{where}.slots", expected=", ".join(names)
                )
            slots.extend(hits)
        else:
            known(pattern, names, f"{where}.slots", "expert")
            slots.append(pattern)
    seated = mixture.model_copy(update={"slots": tuple(slots)})
    if isinstance(seated, LayersSpec):
        return layers.check(seated, experts, recipe.corpora, where)
    if mixture.router.top_k is not None and slots and mixture.router.top_k > len(set(slots)):
        raise RequestError(
            "top_k is above the number of experts",
            where=f"{where}.router.top_k",
            expected=f"at most {len(set(slots))}",
            found=str(mixture.router.top_k),
        )
    if isinstance(seated, AdaptersSpec):
        return adapters.check(seated, experts, recipe.corpora, where)
    return _outputs(recipe, seated, experts, where)


def _outputs(recipe: Recipe, mixture: OutputsSpec, experts: list[Expert], where: str) -> OutputsSpec:
    """The rule of eligibility must have the dates that it goes by."""
    by_name = {e.name: e for e in experts}
    if mixture.eligible is None:
        dated = any(by_name[slot].window is not None for slot in mixture.slots)
        mixture = mixture.model_copy(update={"eligible": "strict" if dated else "all"})
        if not dated and (mixture.fallback or mixture.default_time):
            raise RequestError(
                "fallback and default_time are ignored where no expert has a window",
                where=f"{where}.eligible",
                do="set eligible: strict, or take them out",
            )
    if mixture.fallback is not None:
        known(mixture.fallback, mixture.slots, f"{where}.fallback", "slot")
    for slot in dict.fromkeys(mixture.slots):
        if mixture.eligible == "inclusive" and by_name[slot].window is None:
            raise RequestError(
                f"eligible: inclusive goes by windows, and expert {slot!r} has none",
                where=f"{where}.slots",
                do="give it a window, or set eligible: all",
            )
        unknown = lineage(recipe, experts, slot).unknown if mixture.eligible == "strict" else []
        if unknown:
            raise RequestError(
                f"eligible: strict needs to know when the knowledge of expert {slot!r} ends",
                where=f"{where}.eligible",
                found=unknown[0],
                do="give that corpus a time column, set base.knowledge_until, or set eligible: all",
            )
    return mixture


def check_adaptations(mixtures: tuple[Mixture, ...]) -> None:
    """Co-adaptation starts from a mixture of the same experts, whose router can go on learning.

    Args:
        mixtures: with their slots by name.
    """
    outputs = {m.name: m for m in mixtures if isinstance(m, OutputsSpec)}
    for i, mixture in enumerate(mixtures):
        if not isinstance(mixture, OutputsSpec) or mixture.adapt is None:
            continue
        where = f"mixtures.{i}.adapt.start"
        known(mixture.adapt.start, outputs, where, "mixture at outputs")
        start = outputs[mixture.adapt.start]
        seen = [mixture.name]
        while start.adapt is not None and start.name not in seen:
            seen.append(start.name)
            start = outputs[start.adapt.start]
        if start.name in seen:
            raise RequestError("mixtures start from each other in a circle", where=where, found=" from ".join(seen))
        start = outputs[mixture.adapt.start]
        if start.slots != mixture.slots:
            raise RequestError(
                "co-adaptation goes on with the experts of the mixture that it starts from",
                where=f"mixtures.{i}.slots",
                expected=", ".join(start.slots),
                found=", ".join(mixture.slots),
            )
        if start.eligible != mixture.eligible:
            raise RequestError(
                "co-adaptation goes on under the rule of the mixture that it starts from",
                where=f"mixtures.{i}.eligible",
                expected=start.eligible,
                found=mixture.eligible,
            )
        shape = {"kind", "features", "hidden"}
        ours, theirs = (m.router.model_dump(include=shape) for m in (mixture, start))
        if theirs not in (ours, {"kind": "uniform"}):
            raise RequestError(
                "the router to start from is of another shape",
                where=f"mixtures.{i}.router",
                expected=str(theirs),
                found=str(ours),
                do="use the router of the mixture to start from, or start from a uniform one",
            )


def known(name: str, among: Any, where: str, what: str) -> None:
    if name not in among:
        near = difflib.get_close_matches(name, list(among), 1)
        raise RequestError(
            f"no {what} is called {name!r}",
            where=where,
            expected=", ".join(dict.fromkeys(among)) or "none is defined",
            do=f"did you mean {near[0]!r}?" if near else "define it, or use one of the above",
        )
