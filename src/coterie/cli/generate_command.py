"""`coterie generate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from coterie.errors import visible

NAME = "generate"


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a mixture or an expert.", show_default=False)],
    prompt: Annotated[str, typer.Argument(help="Text to go on from.", show_default=False)],
    time: Annotated[str | None, typer.Option("--time", help="Answer as of this date, such as 2016-05-01.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to add.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the most likely token each time.")] = 0.0,
    top_k: Annotated[int | None, typer.Option(min=1, help="Draw from the k most likely tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Draw from the likeliest, up to this mass.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask as a user does, in the base's chat template.")] = False,
    seed: Annotated[int | None, typer.Option(help="Seed of the draw; with the same one, the same text.")] = None,
) -> None:
    """Let a mixture or an expert go on from a text."""
    import coterie

    answer = coterie.load(model).complete(
        prompt,
        time=time,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        chat=chat,
    )
    typer.echo(visible(str(answer)) if sys.stdout.isatty() else answer)  # a model may have learned what steers a terminal
