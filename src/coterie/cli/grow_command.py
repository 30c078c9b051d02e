"""`coterie grow`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from coterie.cli.options import SetOption, StoreOption
from coterie.errors import RequestError

NAME = "grow"


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Results folder of a finished run.", show_default=False)],
    corpus: Annotated[
        str | None, typer.Option("--corpus", metavar="NAME=PATH", help="Take in a corpus: an expert more if it is new.")
    ] = None,
    train_on: Annotated[bool, typer.Option("--train-on", help="If it is not new, train its expert on it.")] = False,
    alarm: Annotated[float, typer.Option(min=1e-4, max=0.5, help="Share of known texts that may be called new.")] = 0.01,
    prune: Annotated[bool, typer.Option("--prune", help="Take out experts that are hardly used.")] = False,
    below: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the weight below which --prune does.")] = 0.05,
    merge: Annotated[bool, typer.Option("--merge", help="Make the two most similar experts into one.")] = False,
    above: Annotated[float, typer.Option(min=-1.0, max=1.0, help="Cosine of their updates from which --merge does.")] = 0.5,
    mixture: Annotated[str | None, typer.Option("--mixture", help="Which mixture; the only one of adapters.")] = None,
    store: StoreOption = None,
    set: SetOption = None,
) -> None:
    """Let a mixture of adapters take in a corpus, drop an expert or merge two."""
    if (corpus is not None) + prune + merge != 1:
        raise RequestError("say what to do", expected="one of --corpus NAME=PATH, --prune, --merge")
    if train_on and corpus is None:
        raise RequestError("--train-on is about a corpus", do="give --corpus NAME=PATH")
    from coterie.run.grow import Grown

    grown = Grown(run, store, mixture, set or ())
    if corpus is not None:
        name, _, path = corpus.partition("=")
        if not name or not path:
            raise RequestError("a corpus has a name and a path", where="--corpus", expected="NAME=PATH", found=corpus)
        grown.corpus(name, path, alarm=alarm, train_on=train_on)
    elif prune:
        grown.prune(below)
    else:
        grown.merge(above)
