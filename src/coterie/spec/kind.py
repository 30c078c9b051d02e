"""Kinds: several ways to do one thing, of which a recipe chooses one by name.

A family is a class that derives from `Kind`; a kind is a class that derives from its family and says its name, as
``kind: Literal["posterior"] = "posterior"``. Being defined makes it known: what a recipe accepts, what an error lists, what
the reference shows, what the invariants are tested on all come from the classes. A kind in a file of your own works as those
here do, once the file is imported.

The price: a family is open, so a type checker knows of a setting that it is one of the family, not which one. Whoever uses
it calls the family's methods, and never asks for its name.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol, Self, TypeVar, cast

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from coterie.spec.settings import Spec


class Named(Protocol):
    """What can be chosen by name."""

    @property
    def tag(self) -> str: ...


N = TypeVar("N", bound=Named)


class Table(dict[str, N]):
    """Declarations by tag, in the order in which they were added.

    Args:
        noun: what they are, for messages, such as ``file format``.
        also: names with a meaning of their own that may stand for one of them.
    """

    def __init__(self, noun: str, *also: str) -> None:
        super().__init__()
        self.noun, self.also = noun, also

    def add(self, made: N) -> N:
        """Make one more known; ValueError if its tag is taken."""
        if made.tag in (*self.also, *self):
            raise ValueError(f"{made.tag!r} is the name of a {self.noun} already")
        self[made.tag] = made
        return made

    def check(self, name: str) -> str:
        """A validator for settings; its PydanticCustomError lists the names that there are, the most similar first."""
        known = (*self.also, *self)
        if name not in known:
            names = near(name, known)
            raise PydanticCustomError(
                "unknown_kind",
                "{what}; there are: {names}",
                {
                    "what": f"no {self.noun} is called {name!r}",
                    "key": "",
                    "found": name,
                    "known": names,
                    "names": ", ".join(names),
                },
            )
        return name


def near(name: str, known: Collection[str]) -> list[str]:
    """All names that there are, the most similar first."""
    alike = difflib.get_close_matches(name, list(known), n=len(known) or 1, cutoff=0.5)
    return [*alike, *(n for n in known if n not in alike)]


def markdown_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A table of the docs."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


class Kind(Spec):
    """A family of kinds, or one of them."""

    tag_key: ClassVar[str] = "kind"
    """The key that names the kind."""
    noun: ClassVar[str] = "kind"
    """What the family is, for messages, such as ``router at outputs``."""
    default_tag: ClassVar[str | None] = None
    """The kind where none is named."""
    paper: ClassVar[str | None] = None
    """Where it is described."""
    learns_from: ClassVar[str] = "nothing"
    """What it learns from before it is used, for people."""
    examples: ClassVar[tuple[Mapping[str, object], ...]] = ({},)
    """Settings worth trying: the invariants are tested on each."""
    registry: ClassVar[dict[str, type[Kind]]]
    """The family's kinds by name, in the order in which they were defined."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: object) -> None:
        if Kind in cls.__bases__:
            cls.registry = {}
        elif (tag := cls.tag()) is not None:
            cls.registry[tag] = cls

    @classmethod
    def tag(cls) -> str | None:
        """The kind's name; None for a family, and for what only some of its kinds share."""
        field = cls.model_fields.get(cls.tag_key)
        return field.default if field is not None and isinstance(field.default, str) else None

    @classmethod
    def members(cls) -> Iterator[type[Self]]:
        """The kinds of a family, or those among them that share this class."""
        return (kind for kind in cls.registry.values() if issubclass(kind, cls))

    @classmethod
    def named(cls, tag: str) -> type[Self]:
        """The kind of that name; KeyError if there is none."""
        return cast(type[Self], cls.registry[tag])

    @classmethod
    def sentence(cls) -> str:
        """What the kind does."""
        return " ".join((cls.__doc__ or "").split())

    @classmethod
    def table(cls) -> str:
        """The kinds of a family, for a page of the docs."""
        rows = [(f"`{kind.tag()}`", kind.sentence(), kind.learns_from, kind.paper or "") for kind in cls.members()]
        return markdown_table((f"`{cls.tag_key}`", "what it does", "learns from", "source"), rows)

    @classmethod
    def tag_in(cls, settings: Mapping[str, object]) -> object:
        """The name in some settings; a family may tell it by other keys."""
        return settings.get(cls.tag_key, cls.default_tag)

    @model_validator(mode="wrap")
    @classmethod
    def _choose(cls, value: Any, handler: Callable[[Any], Self]) -> Self:
        """Settings of the family become settings of the kind that they name."""
        if cls.tag() is not None or isinstance(value, cls):
            return handler(value)
        if isinstance(value, str):
            value = {cls.tag_key: value}
        if not isinstance(value, Mapping):
            return handler(value)
        tag = cls.tag_in(value)
        kind = cls.registry.get(tag) if isinstance(tag, str) else None
        if kind is None:
            known = near(str(tag), cls.registry)
            raise PydanticCustomError(
                "unknown_kind" if tag is not None else "no_kind",
                "{what}",
                {"what": f"no {cls.noun} is called {tag!r}", "key": cls.tag_key, "found": tag, "known": known},
            )
        return cast(Self, kind.model_validate(value))
