"""Selections while a recipe is read: paths, seeds, recipes that only select, experts for each value of an axis."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

from coterie.errors import RequestError
from coterie.recipe.recipe import Recipe
from coterie.select.plan_settings import CLUSTER, GROUP, Axis, cluster_names, group_names
from coterie.spec.json_types import Settings

_OF_EXPERTS = {"mixtures", "evaluation", "single"}
"""Keys that mean nothing where there are no experts."""


# paths and seeds ----------------------------------------------------------------------------------------------------------


def absolute(select: object, folder: Path) -> object:
    """Paths in a selection are relative to the recipe's folder."""
    if not isinstance(select, dict):
        return select

    def placed(value: object) -> object:
        if isinstance(value, list):
            return [placed(v) for v in value]
        return str(folder / Path(value).expanduser()) if isinstance(value, str) else value

    out = deepcopy(select)
    keep, axes = out.get("keep"), out.get("axes")
    parts = [out.get("tokens"), keep.get("contamination") if isinstance(keep, dict) else None]
    if isinstance(axes, dict):
        out["axes"] = {name: {} if axis is None else axis for name, axis in axes.items()}
        parts += axes.values()
    for part in parts:
        if isinstance(part, dict):
            part |= {key: placed(part[key]) for key in ("path", "tokenizer", "model", "embed") if key in part}
    return out


def seeded(recipe: Recipe) -> Recipe:
    """Selections without a seed of their own draw with the recipe's."""
    corpora = {
        name: corpus.model_copy(update={"select": corpus.select.model_copy(update={"seed": recipe.seed})})
        if corpus.select is not None and corpus.select.seed is None
        else corpus
        for name, corpus in recipe.corpora.items()
    }
    return recipe.model_copy(update={"corpora": corpora})


# recipes that only select -------------------------------------------------------------------------------------------------


def _corpora(raw: Settings) -> Settings:
    """The corpora that are mappings, by name; what else stands there is refused later."""
    corpora = raw.get("corpora")
    return {name: c for name, c in corpora.items() if isinstance(c, dict)} if isinstance(corpora, dict) else {}


def _selections(raw: Settings) -> Settings:
    """The corpora that have a selection."""
    return {name: c for name, c in _corpora(raw).items() if c.get("select") is not None}


def _trains(raw: Settings) -> bool:
    """Whether there are experts, those that are trained together with their mixture included."""
    mixtures = raw.get("mixtures")
    joint = isinstance(mixtures, list) and any(isinstance(m, dict) and m.get("joint") for m in mixtures)
    return bool(raw.get("experts")) or "datasets" in raw or joint


def only_selects(raw: Settings) -> bool:
    """Whether a recipe has selections, and no experts to train on them."""
    return bool(_selections(raw)) and not _trains(raw)


def for_selecting(raw: Settings) -> Settings:
    """A recipe as `coterie select` reads it: without experts nothing is held out, and where no corpus has a selection the
    corpora are only profiled."""
    corpora, chosen = _corpora(raw), _selections(raw)
    if _trains(raw) or not corpora:
        return raw
    bare = {"budget": {"docs": 1}, "axes": {CLUSTER: {"k": "auto"}}}
    whole = {"split": {"valid": 0, "test": 0}}
    complete = {name: {**whole, **c, "select": c.get("select") if chosen else bare} for name, c in corpora.items()}
    return {
        **{key: value for key, value in raw.items() if key not in _OF_EXPERTS},
        "corpora": {**raw["corpora"], **complete},
        "experts": [{"name": "chosen", "corpus": next(iter([*chosen, *corpora]))}],
    }


# experts for each value ---------------------------------------------------------------------------------------------------


def per_axis(raw: Settings) -> Settings:
    """`experts: {per: cluster, ...}` written out: one expert for each value of an axis.

    Further keys: `corpus` (the one with a selection by default), `name` (a pattern with ``{value}``), `only` (some of the
    values), and every key of an expert.
    """
    per = raw.get("experts")
    if not isinstance(per, dict):
        return dict(raw)
    if "per" not in per:
        what, found = "experts are a list, or a mapping with per", ", ".join(map(str, per))
        raise RequestError(what, where="experts", expected="per: cluster", found=found)
    rest = dict(per)
    axis, corpus, only = str(rest.pop("per")), rest.pop("corpus", None), rest.pop("only", None)
    selections = _selections(raw)
    if corpus is None and len(selections) == 1:
        corpus = next(iter(selections))
    if corpus not in selections:
        what, there = "experts per value need a corpus with a selection", ", ".join(selections) or "a corpus with select"
        raise RequestError(what, where="experts.corpus", expected=there, found=str(corpus))
    select = selections[corpus]["select"]
    axes = {name: given or {} for name, given in ((select.get("axes") or {}) if isinstance(select, dict) else {}).items()}
    values = _values(axes, axis)
    unknown = [v for v in only or () if v not in values]
    if unknown:
        raise RequestError(f"no {axis} is called {unknown[0]!r}", where="experts.only", expected=", ".join(values))
    pattern = str(rest.pop("name", "{value}"))
    if "{value}" not in pattern:
        raise RequestError("the name of such experts needs {value}", where="experts.name", found=pattern)
    column, where = axes.get(axis, {}).get("column") or axis, rest.pop("where", None) or {}
    if column in (CLUSTER, GROUP) and axis != column and CLUSTER in axes and not axes[CLUSTER].get("column"):
        raise RequestError(
            f"{column!r} means the fitted clusters here", where="experts.per", do="give the column another name"
        )
    experts = [
        {**rest, "name": pattern.replace("{value}", _as_name(v)), "corpus": corpus, "where": {**where, column: v}}
        for v in (values if only is None else only)
    ]
    return {**raw, "experts": experts}


def _values(axes: Mapping[str, Settings], axis: str) -> list[str]:
    """The values that an axis is known to have before any data is read."""
    if axis == GROUP and axis not in axes:
        groups = axes.get(CLUSTER, {}).get("groups")
        if isinstance(groups, int):
            return group_names(groups)
        raise RequestError("no groups are asked for", where="experts.per", do="set the axis's groups: cluster: {groups: 4}")
    if axis not in axes:
        raise RequestError(f"no axis is called {axis!r}", where="experts.per", expected=", ".join(axes) or "none is defined")
    given = axes[axis]
    if axis == CLUSTER and not given.get("column"):
        k = given.get("k", Axis.model_fields["k"].default)
        if isinstance(k, int) and not given.get("model"):
            return cluster_names(k)
        found = "clusters fitted earlier" if given.get("model") else "k: auto"
        raise _not_known(found, do="give k as a number, or cluster: {groups: 4} and experts: {per: cluster_group}")
    target = given.get("target") or {}
    named = [v for v in target if not set(v) & set("*?[|")]
    if not target or len(named) < len(target):
        raise _not_known(", ".join(target) or "no target", expected=f"a target for axis {axis!r} that names each value")
    return named


def _not_known(found: str, *, expected: str | None = None, do: str | None = None) -> RequestError:
    what = "how many experts there will be must be known before the data is read"
    return RequestError(what, where="experts.per", expected=expected, found=found, do=do)


def _as_name(value: str) -> str:
    """A value as a part of a name."""
    return re.sub(r"[^a-z0-9._-]", "-", value.lower()).lstrip("._-") or "none"
