"""The base of every recipe model, and the few types they share."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Spec(BaseModel):
    """Frozen, closed, documented: an unknown key is an error, a docstring stands under each field."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, populate_by_name=True
    )

    @model_validator(mode="before")
    @classmethod
    def _only_its_keys(cls, value: Any) -> Any:
        """An unknown key is an error that knows the keys that there are."""
        if isinstance(value, dict):
            keys = [field.alias or name for name, field in cls.model_fields.items()]
            for key in value:
                if key not in keys and key not in cls.model_fields:
                    problem = PydanticCustomError("unknown_key", "unknown key", {"keys": keys})
                    raise ValidationError.from_exception_data(
                        cls.__name__, [InitErrorDetails(type=problem, loc=(key,), input=value[key])]
                    )
        return value


def _not_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, found true/false")
    return value


def check_name(value: str) -> str:
    """Names are ``[a-z0-9][a-z0-9._-]*``, at most 64 characters, never digits alone."""
    if not _NAME.fullmatch(value):
        raise ValueError(f"{value!r} is no name: use lower-case letters, digits, '.', '_', '-' (at most 64)")
    if value.isdigit():
        raise ValueError(f"{value!r} is digits alone: put a letter before it, such as e{value}")
    return value


Name = Annotated[str, AfterValidator(check_name)]
Count = Annotated[int, BeforeValidator(_not_bool), Field(ge=1)]
Whole = Annotated[int, BeforeValidator(_not_bool), Field(ge=0)]
Number = Annotated[float, BeforeValidator(_not_bool)]
Share = Annotated[float, BeforeValidator(_not_bool), Field(ge=0, le=1)]
Positive = Annotated[float, BeforeValidator(_not_bool), Field(gt=0)]


def _equal_shares(value: Any) -> Any:
    return dict.fromkeys(value, 1.0) if isinstance(value, list | tuple) else value


Shares = Annotated[dict[str, Positive], BeforeValidator(_equal_shares)]
"""Corpora and their weights in a mix; a list means equal weights."""
