"""`coterie recipe`."""

from __future__ import annotations

from typing import Annotated

import typer

from coterie.errors import RequestError

NAME = "recipe"


def command(
    part: Annotated[str | None, typer.Argument(help="One part only, such as Train or Corpus.", show_default=False)] = None,
) -> None:
    """Print every key that a recipe may hold, with type, default and meaning."""
    from coterie.recipe.reference import markdown, sections

    text = markdown()
    if part is not None:
        names = {m.__name__.lower(): m.__name__ for m, _ in sections()}
        if part.lower() not in names:
            raise RequestError(f"no part is called {part!r}", where="coterie recipe", expected=", ".join(names.values()))
        start = text.index(f"## {names[part.lower()]}\n")
        end = text.find("\n## ", start + 1)
        text = text[start : end if end > 0 else None].rstrip() + "\n"
    typer.echo(text, nl=False)
