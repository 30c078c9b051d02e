"""The recipe's reference, made from the models: for `coterie recipe`, for `docs/`, and for error messages."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from coterie.recipe.recipe import Recipe
from coterie.spec.kind import Kind


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model inside an annotation such as ``tuple[Expert, ...]`` or ``Losses | Choices``."""
    if isinstance(annotation, type) and issubclass(annotation, Kind) and annotation.tag() is None:
        yield from annotation.members()
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is Annotated:
        yield from models_in(get_args(annotation)[0])
    else:
        for arg in get_args(annotation):
            yield from models_in(arg)


def _type(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(args[0])
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_type(a) for a in args if a is not type(None)))
    if origin is tuple:
        return f"list of {_type(args[0])}"
    if origin is dict:
        return f"mapping of {_type(args[0])} to {_type(args[1])}"
    if origin is not None:  # Literal
        return " or ".join(f"`{a}`" for a in args)
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false", "Any": "any value"}.get(
        getattr(annotation, "__name__", str(annotation)), getattr(annotation, "__name__", str(annotation))
    )


def _default(field: Any) -> str:
    if field.default_factory is not None:
        return "empty"
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return "none"
    if isinstance(field.default, BaseModel):
        return "see below"
    return f"`{field.default}`" if field.default != () else "empty"


def sections() -> list[tuple[type[BaseModel], list[tuple[str, str, str, str]]]]:
    """Every model with its fields as (name, type, default, meaning), in reading order."""
    order: list[type[BaseModel]] = [Recipe]
    for model in order:
        for field in model.model_fields.values():
            order.extend(m for m in models_in(field.annotation) if m not in order)
    return [
        (
            model,
            [
                (f.alias or n, _type(f.annotation), _default(f), " ".join((f.description or "").split()))
                for n, f in model.model_fields.items()
            ],
        )
        for model in order
    ]


def markdown() -> str:
    """The reference page of the docs."""
    lines = ["# Recipe reference", "", "Made from the models in `coterie.recipe`; `coterie recipe` prints the same.", ""]
    for model, fields in sections():
        lines += [f"## {model.__name__}", "", " ".join((model.__doc__ or "").split()), ""]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        for name, kind, default, meaning in fields:
            cells = [f"`{name}`", kind, default, meaning]
            lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"
