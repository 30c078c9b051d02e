"""JSON files that somebody else wrote, read with bounds: no pipe is waited at, no nesting breaks the reader."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

from coterie.errors import RequestError
from coterie.spec.json_types import Figures

MOST = 100_000_000
"""Bytes of a JSON file; safetensors allows its headers as many."""


def read_json(path: Path) -> Figures:
    """A JSON object in a plain file.

    Raises:
        RequestError: it is not there, or is none; names the file.
    """
    try:
        value = json.loads(_bytes(path))
    except FileNotFoundError:
        raise RequestError("a file is missing", where=str(path.parent), expected=path.name, found="no such file") from None
    except RecursionError:
        raise RequestError("cannot be read as JSON", where=str(path), found="nested too deeply") from None
    except (ValueError, OSError) as error:
        raise RequestError("cannot be read as JSON", where=str(path), found=str(error)) from None
    if not isinstance(value, dict):
        raise RequestError("cannot be read", where=str(path), expected="a JSON object", found=type(value).__name__)
    return value


def _bytes(path: Path) -> bytes:
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe without a writer would be waited for
    with open(handle, "rb") as stream:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise ValueError("it is no plain file")
        if info.st_size > MOST:
            raise ValueError(f"{info.st_size:,} bytes, and at most {MOST:,} are read")
        return stream.read()
