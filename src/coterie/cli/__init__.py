"""The command line: one verb a file, heavy imports inside the verbs, so that `--help` answers at once.

Exit codes: 0 done; 2 the request is wrong; 1 it failed while working (what was finished is kept); 130 interrupted.
"""

from __future__ import annotations

import functools
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, ParamSpec

import typer

from coterie import __version__, progress
from coterie.cli import evaluate_command as evaluate
from coterie.cli import export_command as export
from coterie.cli import generate_command as generate
from coterie.cli import grow_command as grow
from coterie.cli import mix_command as mix
from coterie.cli import quickstart_command as quickstart
from coterie.cli import recipe_command as recipe
from coterie.cli import report_command as report
from coterie.cli import run_command as run
from coterie.cli import select_command as select
from coterie.cli import store_command as store
from coterie.cli import train_command as train
from coterie.errors import CoterieError, RequestError

app = typer.Typer(
    name="coterie",
    help="Train language-model experts once, each on its own slice of data, and make them work together as one model.\n\n"
    "Start with: coterie quickstart",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


P = ParamSpec("P")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"coterie {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print results and errors only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    progress.QUIET = quiet
    if debug:
        os.environ["COTERIE_DEBUG"] = "1"


class InterruptError(CoterieError):
    """Ctrl-C, or a request to end."""

    exit_code = 130


GOES_ON = (quickstart, run, train, mix, evaluate, grow, select)
"""What leaves finished work in a store, from which the same command continues."""


def _interruptible(verb: Callable[P, None], goes_on: bool) -> Callable[P, None]:
    """Typer would answer Ctrl-C with one word; a person needs to know what is kept and how to go on."""

    @functools.wraps(verb)
    def called(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            verb(*args, **kwargs)
        except (KeyboardInterrupt, Exception) as error:
            if not (isinstance(error, KeyboardInterrupt) or _interrupted):  # a library may raise its own error of one
                raise
            raise InterruptError(
                "stopped",
                kept="what was finished, and the newest checkpoint of what was not"
                if goes_on
                else "all that was there before",
                do=f"go on with the same command: {shlex.join(['coterie', *sys.argv[1:]])}" if goes_on else None,
            ) from None

    return called


for verb in (quickstart, run, train, mix, evaluate, generate, export, report, recipe, grow):
    app.command(verb.NAME)(_interruptible(verb.command, verb in GOES_ON))
for group, name in ((select, "select"), (store, "store")):
    for one in group.app.registered_commands:
        assert one.callback is not None
        one.callback = _interruptible(one.callback, group in GOES_ON)
    app.add_typer(group.app, name=name)


def main() -> None:
    """Entry point: run a verb, turn errors into one clear message and an exit code."""
    with _signals():
        try:
            if not all(word.isascii() for word in (os.getcwd(), *sys.argv)):
                _require_utf8()
            app(prog_name="coterie")
        except CoterieError as error:
            _fail(error, str(error), error.exit_code)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Exception as error:
            if _interrupted:
                raise KeyboardInterrupt from None
            if isinstance(error, UnicodeEncodeError):  # of a path in a recipe
                try:
                    _require_utf8()
                except RequestError as known:
                    _fail(error, str(known), known.exit_code)
            text = f"{type(error).__name__}: {error}\n  do:       this is a fault of ours; --debug shows where it happened"
            _fail(error, text, 1)


def _require_utf8() -> None:
    """The libraries that read and write our files know paths in UTF-8 only."""
    if (encoding := sys.getfilesystemencoding()) != "utf-8":
        raise RequestError(
            "paths beyond ASCII cannot be used here",
            where=os.fsencode(os.getcwd()).decode("utf-8", "replace"),
            expected="file names in UTF-8",
            found=f"file names in {encoding}, from the environment (LC_ALL, LANG, PYTHONUTF8)",
            do="set PYTHONUTF8=1",
        )


@contextmanager
def _signals() -> Iterator[None]:
    """Ctrl-C and a request to end are one, and never a traceback."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) in (signal.SIG_DFL, signal.default_int_handler):
        signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    except KeyboardInterrupt:  # before a verb began, or after it was done
        sys.exit(InterruptError.exit_code)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)  # Python's own way at its end would be a traceback


_interrupted: list[int] = []
"""Signals that came."""


def _interrupt(number: int, _: object) -> None:
    _interrupted.append(number)
    raise KeyboardInterrupt


def _fail(error: BaseException, text: str, code: int) -> None:
    if os.environ.get("COTERIE_DEBUG"):
        raise error
    print(text if code == 130 else f"error: {text}", file=sys.stderr)
    sys.exit(code)
