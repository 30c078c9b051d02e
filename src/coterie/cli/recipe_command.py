"""`coterie recipe`."""

from __future__ import annotations

from typing import Annotated

import typer

from coterie.errors import RequestError

NAME = "recipe"


def command(
    part: Annotated[
        str | None, typer.Argument(help="One part only, such as Train, Corpus or posterior.", show_default=False)
    ] = None,
) -> None:
    """Print every key that a recipe may hold, with type, default and meaning."""
    from coterie.recipe.reference import markdown, sections
    from coterie.spec.kind import near

    if part is None:
        typer.echo(markdown(), nl=False)
        return
    every = sections()
    found = [s for s in every if part.lower() in (s.title.lower(), s.title.rpartition(": ")[2].lower())]
    if not found:
        names = near(part, dict.fromkeys(s.title for s in every))
        raise RequestError(f"no part is called {part!r}", where="coterie recipe", expected=", ".join(names))
    typer.echo("\n".join(s.markdown() for s in found), nl=False)
