"""Templates of pages: what is put in is escaped, and what is missing is an error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jinja2


def template(path: Path, *filters: Callable[..., str]) -> jinja2.Template:
    """A template file, with functions that it may call on values, by their names without a leading underscore."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({f.__name__.lstrip("_"): f for f in filters})
    return environment.get_template(path.name)
