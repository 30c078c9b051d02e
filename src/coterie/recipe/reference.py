"""The recipe's reference, made from the models: for `coterie recipe`, for `docs/`, and for error messages."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from coterie.recipe.recipe import Recipe
from coterie.spec.kind import Kind


def models_in(annotation: object) -> Iterator[type[BaseModel]]:
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
    if isinstance(annotation, type) and issubclass(annotation, Kind):
        return annotation.noun
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


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "empty"
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return "none"
    if isinstance(field.default, Kind):
        return f"`{field.default.tag()}`"
    if isinstance(field.default, BaseModel):
        return "see below"
    return f"`{field.default}`" if field.default != () else "empty"


@dataclass(frozen=True)
class Section:
    """One model of a recipe."""

    title: str
    sentence: str
    fields: list[tuple[str, str, str, str]]
    """(name, type, default, meaning)."""

    def markdown(self) -> str:
        lines = [f"## {self.title}", "", self.sentence, "", "| key | type | default | meaning |", "|---|---|---|---|"]
        for name, *rest in self.fields:
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in (f"`{name}`", *rest)) + " |")
        return "\n".join(lines) + "\n"


def sections() -> list[Section]:
    """Every model, in reading order."""
    order: list[type[BaseModel]] = [Recipe]
    for model in order:
        for field in model.model_fields.values():
            order.extend(m for m in models_in(field.annotation) if m not in order)
    return [_section(model) for model in order]


def _section(model: type[BaseModel]) -> Section:
    title, sentence = model.__name__, " ".join((model.__doc__ or "").split())
    if issubclass(model, Kind):
        title = f"{model.noun}: {model.tag()}"
        sentence += f" ({model.paper})" if model.paper else ""
    fields = [
        (f.alias or name, _type(f.annotation), _default(f), " ".join((f.description or "").split()))
        for name, f in model.model_fields.items()
    ]
    return Section(title, sentence, fields)


def markdown() -> str:
    """The reference page of the docs."""
    head = "# Recipe reference\n\nMade from the models that a recipe is read into; `coterie recipe` prints the same.\n"
    return "\n".join([head, *(section.markdown() for section in sections())])
