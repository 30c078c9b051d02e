"""Experts: weights, each trained once on its own slice; families of experts by time window."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from coterie.corpora.windows import Window, Windows
from coterie.experts.train_settings import Train
from coterie.models.lora_settings import Lora
from coterie.spec.settings import Spec, check_name


def _expert_name(value: str) -> str:
    check_name(re.sub(r"\{(start|end)\}", "0", value).replace("{", "?"))
    return value


ExpertKind = Literal["full", "ffn", "lora"]


class Expert(Spec):
    """One expert, or with `windows` a family of them."""

    name: Annotated[str, AfterValidator(_expert_name)]
    """Name in this recipe; a family's holds `{start}` or `{end}`. Never part of the expert's identity."""
    corpus: str = ""
    """Corpus it learns; of an `adapter` made elsewhere, the one that tells a fitted router what it is for."""
    kind: ExpertKind = "full"
    """All weights, feed-forward weights only, or a LoRA adapter."""
    from_: str = Field(default="base", alias="from")
    """Where it branches: `base`, `fresh` (new weights), `previous` (the window before; the first window is fresh), or
    another expert's name."""
    windows: (
        Annotated[
            Annotated[Windows, Tag("row")] | Annotated[tuple[Window, ...], Tag("list")],
            Discriminator(lambda value: "list" if isinstance(value, list | tuple) else "row"),
        ]
        | None
    ) = None
    """One expert for each window of time; needs the corpus's `time` column."""
    allow: tuple[Literal["gap", "overlap"], ...] = ()
    """What a list of windows may have: gaps between them, overlaps. Either is an error unless allowed here."""
    window: Window | None = None
    """Window of this one expert; of a finished one, the span of all that it has read, as its maker says."""
    where: dict[str, Any] = Field(default_factory=dict)
    """Train on documents whose column has the value, or one of a list."""
    lora: Lora | None = None
    """Settings of kind `lora`."""
    adapter: str | None = None
    """A finished PEFT adapter of the base, as a directory (relative to the recipe): nothing is trained."""
    model: str | None = None
    """A finished Hugging Face model of the base's architecture, as a directory (relative to the recipe): nothing is
    trained."""
    train: Train = Train()
    """Training settings."""
    seed: int | None = None
    """Seed of this expert's training; the recipe's by default."""

    @property
    def finished(self) -> bool:
        """Made elsewhere: nothing is trained."""
        return self.adapter is not None or self.model is not None

    @model_validator(mode="before")
    @classmethod
    def _an_adapter_is_lora(cls, value: object) -> object:
        return {"kind": "lora", **value} if isinstance(value, dict) and value.get("adapter") is not None else value

    @model_validator(mode="after")
    def _settings_apply(self) -> Expert:
        if not self.finished and not self.corpus:
            raise ValueError("an expert needs a corpus to learn, or a finished adapter or model")
        if self.adapter is not None and self.model is not None:
            raise ValueError("give either adapter or model")
        if self.finished:
            if (self.kind == "lora") != (self.adapter is not None):
                raise ValueError(f"an adapter is of kind lora and a model is not: found kind {self.kind}")
            fields, ignored = type(self).model_fields, ("lora", "windows", "seed", "where")
            if unused := [k for k in ignored if getattr(self, k) not in (None, fields[k].default, {})]:
                raise ValueError(
                    f"{unused[0]} has no effect on a finished {'adapter' if self.adapter else 'model'}: remove it"
                )
        if self.lora is not None and self.kind != "lora":
            raise ValueError(f"lora settings are ignored by kind {self.kind}: set kind: lora or remove them")
        if self.allow and not isinstance(self.windows, tuple):
            raise ValueError("allow is ignored without a list of windows")
        if self.windows is not None and self.window is not None:
            raise ValueError("give either windows or window")
        if ("{" in self.name) != (self.windows is not None):
            raise ValueError("a family needs both windows and {start} or {end} in its name")
        if self.from_ == "previous" and self.windows is None and self.window is None:
            raise ValueError("from: previous needs windows")
        return self


class Single(Spec):
    """One model on all the data: the reference that modularity is measured against.

    Trained from the same start as the base, on the same data in the same shares, with as many tokens as base and
    experts together."""

    train: Train = Train()
    """Training settings; the budget follows from base and experts."""
