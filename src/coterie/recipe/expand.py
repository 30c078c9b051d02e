"""Short forms written out: the flat form, defaults, families of windows, globs in slots; and the checks across parts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from coterie.errors import RequestError
from coterie.experts.expert_settings import Expert
from coterie.mixtures.place import known
from coterie.recipe import named_corpora as named
from coterie.recipe import select_forms as selecting
from coterie.recipe.families import family
from coterie.recipe.mixture_checks import checked_mixtures
from coterie.recipe.recipe import Recipe
from coterie.spec.json_types import Figures

_FLAT = {"datasets", "paths", "kind", "at", "router", "eligible"}


def long_form(raw: Figures, *, folder: Path, stem: str) -> Figures:
    """Write out what may be left out: the name, the flat form, `train:` for all, named corpora; make paths absolute."""
    raw = dict(raw)
    raw.setdefault("name", re.sub(r"[^a-z0-9._-]", "-", stem))
    raw = selecting.per_axis(raw)
    if "datasets" in raw:
        raw = _flat(raw)
    defaults = raw.pop("train", None)
    if defaults is not None:
        raw = _with_defaults(raw, defaults)
    corpora = raw.get("corpora")
    if corpora is None or isinstance(corpora, dict):
        used = [e.get("corpus") for e in raw.get("experts") or [] if isinstance(e, dict)]
        corpora = dict(corpora or {})
        for name in used:
            if name in named.CORPORA and name not in corpora:
                corpora[name] = {}
        raw["corpora"] = {k: _corpus(k, v, folder) for k, v in corpora.items()}
    if isinstance(raw.get("base"), dict):
        raw["base"] = _base(raw["base"], folder)
    mixtures = raw.get("mixtures")
    if "experts" not in raw and isinstance(mixtures, list) and any(isinstance(m, dict) and m.get("joint") for m in mixtures):
        raw["experts"] = []  # those trained together are of their mixture
    if isinstance(raw.get("experts"), list):
        raw["experts"] = [_absolute(_absolute(e, "adapter", folder), "model", folder) for e in raw["experts"]]
    if isinstance(raw.get("evaluation"), list):
        raw["evaluation"] = [_absolute(e, "choices", folder) for e in raw["evaluation"]]
    if raw.get("single") is True:
        raw["single"] = {}
    elif raw.get("single") is False:
        raw["single"] = None
    return raw


def _flat(raw: Figures) -> Figures:
    """`{"datasets": ["a", "a", "b"]}`: one slot for each entry, one expert for each distinct dataset."""
    clash = sorted({"experts", "mixtures"} & raw.keys())
    if clash:
        raise RequestError("the flat form already says what experts and mixtures there are", where=clash[0])
    datasets = raw["datasets"]
    if not isinstance(datasets, list) or not datasets or not all(isinstance(d, str) for d in datasets):
        raise RequestError("expected a list of dataset names", where="datasets", found=repr(datasets))
    distinct = list(dict.fromkeys(datasets))
    flat = {k: raw.pop(k) for k in _FLAT & raw.keys()}
    corpora = dict(raw.get("corpora") or {})
    for name, path in (flat.get("paths") or {}).items():
        corpora[name] = {**(corpora.get(name) or {}), "path": path}
    for name in distinct:
        if name not in corpora and name not in named.CORPORA:
            raise RequestError(
                f"no corpus is called {name!r}",
                where="datasets",
                expected=", ".join([*corpora, *named.CORPORA]),
                do="define it under corpora",
            )
        corpora.setdefault(name, {})
    mixture: dict[str, Any] = {
        "name": "mixture",
        "at": flat.get("at", "outputs"),
        "slots": datasets,
        "router": flat.get("router", "uniform"),
    }
    if "eligible" in flat:
        mixture["eligible"] = flat["eligible"]
    raw["corpora"] = corpora
    raw["experts"] = [{"name": d, "corpus": d, "kind": flat.get("kind", "full")} for d in distinct]
    raw["mixtures"] = [mixture]
    raw.setdefault("evaluation", [{"name": "losses", "corpora": distinct}])
    return raw


def _with_defaults(raw: Figures, defaults: Any) -> Figures:
    """Top-level `train:` holds settings for base, experts and single; each may override them."""
    if not isinstance(defaults, dict):
        raise RequestError("expected a mapping of training settings", where="train", found=repr(defaults))
    budget = {"tokens", "epochs"}

    def merged(own: Any) -> Any:
        if own is not None and not isinstance(own, dict):
            return own
        own = own or {}
        kept = {k: v for k, v in defaults.items() if not (k in budget and budget & own.keys())}
        return {**kept, **own}

    experts = raw.get("experts")
    if isinstance(experts, list):
        raw["experts"] = [{**e, "train": merged(e.get("train"))} if isinstance(e, dict) else e for e in experts]
    shared = {k: v for k, v in defaults.items() if k not in budget}
    base = raw.get("base")
    if isinstance(base, dict) and isinstance(base.get("pretrain"), dict):
        pretrain = base["pretrain"]
        raw["base"] = {**base, "pretrain": {**pretrain, "train": {**shared, **(pretrain.get("train") or {})}}}
    if raw.get("single"):
        single = raw["single"] if isinstance(raw["single"], dict) else {}
        raw["single"] = {**single, "train": {**shared, **(single.get("train") or {})}}
    return raw


def _corpus(name: str, value: Any, folder: Path) -> Any:
    if value is None:
        value = {}
    if not isinstance(value, dict):
        return value
    value = _absolute(value, "path", folder)
    if "select" in value:
        value = {**value, "select": selecting.absolute(value["select"], folder)}
    if not any(value.get(k) for k in ("path", "hub")) and name not in named.CORPORA:
        raise RequestError(
            f"corpus {name!r} says neither path nor hub, and is not one of the named ones",
            where=f"corpora.{name}",
            expected=", ".join(named.CORPORA),
            do=f"set corpora.{name}.path",
        )
    return named.complete(name, value)


def _base(value: Figures, folder: Path) -> Figures:
    path = value.get("path")
    if isinstance(path, str) and (folder / path).exists():
        value = {**value, "path": str((folder / path).resolve())}
    tokenizer = value.get("tokenizer")
    if isinstance(tokenizer, str) and (folder / tokenizer).exists():
        value = {**value, "tokenizer": str((folder / tokenizer).resolve())}
    return value


def _absolute(value: Any, key: str, folder: Path) -> Any:
    """Paths in a recipe are relative to the recipe's folder."""
    if not isinstance(value, dict) or key not in value:
        return value
    paths = value[key]
    if isinstance(paths, str):
        return {**value, key: _place(folder, paths)}
    if isinstance(paths, list) and all(isinstance(p, str) for p in paths):
        return {**value, key: [_place(folder, p) for p in paths]}
    return value


def expand(recipe: Recipe) -> Recipe:
    """Families become experts, globs become slots; every reference is checked.

    Raises:
        RequestError: ``where`` is the dotted key.
    """
    recipe = selecting.seeded(recipe)
    experts: list[Expert] = []
    for i, expert in enumerate(recipe.experts):
        experts.extend(family(expert, f"experts.{i}"))
    names = [e.name for e in experts]
    for n in names:
        if names.count(n) > 1:
            raise RequestError(f"two experts are called {n!r}", where="experts")
    for i, expert in enumerate(recipe.experts):
        _check_expert(recipe, expert, names, f"experts.{i}")
    _no_circle(experts)
    _no_adapter_parent(recipe, experts)
    for i, evaluation in enumerate(recipe.evaluation):
        for corpus in evaluation.reads:
            known(corpus, recipe.corpora, f"evaluation.{i}.corpora", "corpus")
    for corpus in _base_corpora(recipe):
        known(corpus, recipe.corpora, "base", "corpus")
    mixtures = checked_mixtures(recipe, {e.name: e for e in experts})
    return recipe.model_copy(update={"experts": tuple(experts), "mixtures": mixtures})


def _base_corpora(recipe: Recipe) -> list[str]:
    pretrain = recipe.base.pretrain
    return [*(pretrain.corpora if pretrain else ()), *recipe.base.tokenizer_corpora]


def _check_expert(recipe: Recipe, expert: Expert, names: list[str], where: str) -> None:
    if expert.corpus:
        known(expert.corpus, recipe.corpora, f"{where}.corpus", "corpus")
    if expert.from_ not in ("base", "fresh", "previous"):
        known(expert.from_, names, f"{where}.from", "expert")
    dated = expert.windows is not None or expert.window is not None
    if dated and expert.corpus and recipe.corpora[expert.corpus].time is None:
        raise RequestError(
            "windows need dates",
            where=f"{where}.windows",
            expected=f"corpora.{expert.corpus}.time",
            found="no time column",
            do=f"set corpora.{expert.corpus}.time to the column that holds the date",
        )


def _no_circle(experts: list[Expert]) -> None:
    parent = {e.name: e.from_ for e in experts}
    for name in parent:
        seen, at = [name], parent[name]
        while at in parent:
            if at in seen:
                raise RequestError("experts branch in a circle", where="experts", found=" from ".join([*seen, at]))
            seen.append(at)
            at = parent[at]


def _no_adapter_parent(recipe: Recipe, experts: list[Expert]) -> None:
    kinds = {e.name: e.kind for e in experts}
    for expert in experts:
        if kinds.get(expert.from_) == "lora" and expert.kind != "lora":
            raise RequestError(
                f"expert {expert.name!r} branches from the adapter {expert.from_!r}, which is no whole model",
                where="experts",
                do="branch from base or from an expert of kind full or ffn, or train the adapter on as kind lora",
            )


def _place(folder: Path, path: str) -> str:
    """A path from a folder, without ``..`` where that leads to the same place, so that one file has one name."""
    joined = str(folder / Path(path).expanduser())
    plain = os.path.normpath(joined)
    return plain if os.path.realpath(plain) == os.path.realpath(joined) else joined
