"""`coterie export`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from coterie.errors import RequestError
from coterie.mixtures.export.export_formats import NAMES

NAME = "export"


def command(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MIXTURE",
            show_default=False,
            help="Folder of a mixture at layers; or of a mixture-of-experts checkpoint, to import it.",
        ),
    ],
    to: Annotated[Path, typer.Option("--to", help="New folder for the checkpoint (a file for gguf).", show_default=False)],
    format: Annotated[
        str | None, typer.Option("--format", metavar="|".join(NAMES), help="Default: the one that the base's kind has.")
    ] = None,
    expand: Annotated[bool, typer.Option("--expand", help="Write a copy of its expert for every slot.")] = False,
    dtype: Annotated[
        Literal["fp32", "bf16", "fp16", "q8_0"] | None,
        typer.Option("--dtype", help="Precision of the weights. Default: the mixture's. q8_0 is for gguf."),
    ] = None,
    shard_size: Annotated[str, typer.Option("--shard-size", help="Largest file, such as 5GB or 500MB.")] = "5GB",
) -> None:
    """Write a mixture as a checkpoint that other tools load, read it back, and say how far the two are apart."""
    size = _bytes(shard_size)
    if format is not None:
        from coterie.mixtures.place import known

        known(format, NAMES, "--format", "format")
    if dtype == "q8_0" and format != "gguf":
        raise RequestError("only gguf files hold q8_0", where="--dtype", expected="fp32, bf16 or fp16", found=dtype)
    if format == "gguf":
        from coterie.mixtures.export.gguf import export_gguf

        done = export_gguf(model, to, dtype=dtype or "fp32", expand=expand, say=typer.echo)
    else:
        from coterie.mixtures.export.write_checkpoint import export

        done = export(model, to, format, expand=expand, dtype=dtype, shard_bytes=size, say=typer.echo)
    for line in done.lines:
        typer.echo(line)
    typer.echo(f"{done.format}: {done.folder}, {done.experts} experts, {done.bytes / 1e9:,.3f} GB")


def _bytes(text: str) -> int:
    """A size such as 5GB."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kMGT]?)B?", text)
    size = int(float(match[1]) * 1000 ** " kMGT".index(match[2] or " ")) if match else 0
    if size < 1000:
        raise RequestError("not a size", where="--shard-size", expected="such as 5GB or 500MB", found=text)
    return size
