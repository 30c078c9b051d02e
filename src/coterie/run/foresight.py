"""Which models know the future of what they are evaluated on, and of how much of it.

It matters where a recipe goes by dates: where one of its mixtures needs one. A model knows the future of a document or
question from before the day on which all text behind the model ends. Such a figure is true, but it answers another question
than that of a mixture that keeps to its dates: the report marks it, and never calls it the best.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date

from coterie.recipe.lineage import corpora_lineage, lineage
from coterie.run.parts import Parts


def foresight(parts: Parts, weight_by_day: Mapping[date, float]) -> dict[str, float]:
    """The share of what is evaluated whose future a model knows, of each model that knows any.

    Args:
        weight_by_day: what is evaluated, such as tokens, by its date.

    Returns:
        shares by model, 1.0 also where the recipe cannot tell how long a model's knowledge reaches; nothing where no mixture
        goes by dates.
    """
    if not any(m.needs_date for m in parts.recipe.mixtures) or not weight_by_day:
        return {}
    everyone, days = list(parts.by_name), list(weight_by_day)
    ends = {name: parts.knowledge(lineage(parts.recipe, parts.recipe.experts, name)) for name in everyone}

    def end(experts: Iterable[str], corpora: Iterable[str] = ()) -> date:
        known = [ends[name] for name in experts if name in ends]
        if corpora := list(corpora):
            known.append(parts.knowledge(corpora_lineage(parts.recipe, corpora)))
        return max((date.max if k is None else k for k in known), default=date.min)

    def share(end_of_day: Iterable[date]) -> float:
        early = sum(weight_by_day[day] for day, end in zip(days, end_of_day, strict=True) if day < end)
        return early / sum(weight_by_day.values())

    found = {name: share([end([name])] * len(days)) for name in everyone}
    for mixture in parts.recipe.mixtures:
        answering = mixture.answering(parts, [day.toordinal() for day in days])
        found[mixture.name] = share(end(experts, mixture.own_corpora) for experts in answering)
    if parts.recipe.single is not None:
        found["single"] = share([end(everyone)] * len(days))
    return {name: round(share, 6) for name, share in found.items() if share}
