"""Which modules an adapter's configuration names, with its patterns resolved within a limit of time.

PEFT searches with `re`, which may take for ever on a pattern that somebody made for that. Here each pattern is searched with
a limit, and PEFT then gets the plain names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import regex

from coterie.errors import RequestError
from coterie.spec.json_types import Figures

_SECONDS = 2.0
"""For one pattern over all modules."""
_LISTS, _MAPPINGS = ("target_modules", "exclude_modules"), ("rank_pattern", "alpha_pattern")


def plain_names(config: Mapping[str, object], modules: Iterable[str], path: Path) -> Figures:
    """What of an adapter's configuration is a pattern, as names.

    Args:
        modules: names of all modules of the base.
        path: of the configuration, for messages.

    Raises:
        RequestError: a pattern is none, names nothing or finds no end.
    """
    names, found = list(modules), Figures()
    for key in _LISTS:
        pattern = config.get(key)
        if isinstance(pattern, str) and pattern != "all-linear":
            found[key] = _matching(pattern, names, path, key)
            if key == "target_modules" and not found[key]:
                raise RequestError("the adapter names no module of the base", where=f"{path} ({key})", found=pattern[:80])
    for key in _MAPPINGS:
        values = config.get(key)
        if isinstance(values, Mapping) and values:
            by_name = [dict.fromkeys(_matching(rf"(?:.*\.)?(?:{p})", names, path, key), v) for p, v in values.items()]
            found[key] = {name: value for one in reversed(by_name) for name, value in one.items()}  # the first one decides
    if isinstance(pattern := config.get("layers_pattern"), str) and not pattern.replace("_", "").replace(".", "").isalnum():
        raise RequestError(
            "the adapter names its layers by a pattern, which is refused",
            where=f"{path} (layers_pattern)",
            expected="a plain name, such as layers",
            found=pattern[:80],
        )
    return found


def _matching(pattern: str, names: list[str], path: Path, key: str) -> list[str]:
    try:
        compiled = regex.compile(pattern)
        return [name for name in names if compiled.fullmatch(name, timeout=_SECONDS)]
    except TimeoutError:
        found, expected = "it finds no end", f"an answer within {_SECONDS:g} s"
    except (regex.error, RecursionError, OverflowError) as error:
        found, expected = str(error), "a regular expression"
    raise RequestError(
        "the adapter names its modules by a pattern that will not do",
        where=f"{path} ({key})",
        expected=expected,
        found=f"{pattern[:80]}: {found}",
        do="list the modules by name",
    )
