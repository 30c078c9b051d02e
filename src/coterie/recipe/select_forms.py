"""Selections while a recipe is read: paths, seeds, files that only select, experts for each value of an axis."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coterie.errors import RequestError
from coterie.select.plan_settings import CLUSTER, GROUP, Axis, cluster_names, group_names

if TYPE_CHECKING:
    from coterie.recipe.recipe import Recipe


def absolute(select: Any, folder: Path) -> Any:
    """Paths in a selection are relative to the recipe's folder."""
    if not isinstance(select, dict):
        return select

    def at(value: Any) -> Any:
        if isinstance(value, list):
            return [at(v) for v in value]
        return str(folder / Path(value).expanduser()) if isinstance(value, str) else value

    def inside(part: Any, *keys: str) -> Any:
        return {k: at(v) if k in keys else v for k, v in part.items()} if isinstance(part, dict) else part

    out = dict(select)
    if isinstance(out.get("axes"), dict):
        out["axes"] = {
            name: inside(axis if axis is not None else {}, "model", "embed") for name, axis in out["axes"].items()
        }
    if isinstance(out.get("keep"), dict):
        out["keep"] = {**out["keep"], "contamination": inside(out["keep"].get("contamination"), "path")}
    if "tokens" in out:
        out["tokens"] = inside(out["tokens"], "tokenizer")
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


def alone(raw: dict[str, Any]) -> dict[str, Any]:
    """A file that only selects: without experts nothing is held out, and a corpus without a selection is only profiled."""
    if "experts" in raw or "datasets" in raw:
        return raw
    corpora = raw.get("corpora")
    if not isinstance(corpora, dict) or not corpora:
        return raw
    bare = {"budget": {"docs": 1}, "axes": {CLUSTER: {"k": "auto"}}}
    asked = [name for name, c in corpora.items() if isinstance(c, dict) and c.get("select")]
    complete = {
        name: {"split": {"valid": 0, "test": 0}, **c, "select": c.get("select") or (None if asked else bare)}
        if isinstance(c, dict)
        else c
        for name, c in corpora.items()
    }
    return {**raw, "corpora": complete, "experts": [{"name": "chosen", "corpus": next(iter([*asked, *corpora]))}]}


def per_axis(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """`experts: {per: cluster, ...}` written out: one expert for each value of an axis.

    Further keys: `corpus` (the one with a selection by default), `name` (a pattern with ``{value}``), `only` (some of the
    values), and every key of an expert.
    """
    asked = recipe.get("experts")
    if not isinstance(asked, dict):
        return dict(recipe)
    if "per" not in asked:
        raise RequestError(
            "experts are a list, or a mapping with per",
            where="experts",
            expected="per: cluster",
            found=", ".join(map(str, asked)),
        )
    corpora = {n: c for n, c in (recipe.get("corpora") or {}).items() if isinstance(c, dict) and c.get("select")}
    rest = dict(asked)
    axis, corpus = rest.pop("per"), rest.pop("corpus", None)
    if corpus is None and len(corpora) == 1:
        corpus = next(iter(corpora))
    if corpus not in corpora:
        raise RequestError(
            "experts per value need a corpus with a selection",
            where="experts.corpus",
            expected=", ".join(corpora) or "a corpus with select",
            found=str(corpus),
        )
    values = _values(corpora[corpus]["select"].get("axes") or {}, str(axis))
    only = rest.pop("only", None)
    if only is not None:
        unknown = [v for v in only if v not in values]
        if unknown:
            raise RequestError(f"no {axis} is called {unknown[0]!r}", where="experts.only", expected=", ".join(values))
        values = list(only)
    pattern = str(rest.pop("name", "{value}"))
    if "{value}" not in pattern:
        raise RequestError("the name of such experts needs {value}", where="experts.name", found=pattern)
    column = axis if axis in (CLUSTER, GROUP) else (corpora[corpus]["select"]["axes"][axis] or {}).get("column") or axis
    where = rest.pop("where", None) or {}
    experts = [
        {**rest, "name": pattern.replace("{value}", _plain(v)), "corpus": corpus, "where": {**where, column: v}}
        for v in values
    ]
    return {**recipe, "experts": experts}


def _values(axes: Mapping[str, Any], axis: str) -> list[str]:
    """The values that an axis is known to have before any data is read."""
    if axis == GROUP:
        groups = (axes.get(CLUSTER) or {}).get("groups")
        if isinstance(groups, int):
            return group_names(groups)
        raise RequestError("no groups are asked for", where="experts.per", do="set the axis's groups: cluster: {groups: 4}")
    if axis not in axes:
        raise RequestError(f"no axis is called {axis!r}", where="experts.per", expected=", ".join(axes) or "none is defined")
    given = axes[axis] or {}
    if axis == CLUSTER and not given.get("column"):
        k = given.get("k", Axis.model_fields["k"].default)
        if isinstance(k, int) and not given.get("model"):
            return cluster_names(k)
        raise RequestError(
            "how many experts there will be must be known before the data is read",
            where="experts.per",
            found="k: auto" if not given.get("model") else "clusters fitted earlier",
            do="give k as a number, or cluster: {groups: 4} and experts: {per: cluster_group}",
        )
    target = given.get("target") or {}
    plain = [v for v in target if not set(v) & set("*?[|")]
    if not target or len(plain) < len(target):
        raise RequestError(
            "how many experts there will be must be known before the data is read",
            where="experts.per",
            expected=f"a target for axis {axis!r} that names each value",
            found=", ".join(target) or "no target",
        )
    return plain


def _plain(value: str) -> str:
    """A value as a part of a name."""
    return re.sub(r"[^a-z0-9._-]", "-", value.lower()).lstrip("._-") or "none"
